async def starts(quick): return []
async def restarts(quick): return []
