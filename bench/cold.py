async def burst(quick): return []
async def churn(quick): return []
