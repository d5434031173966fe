async def memory(quick): return []
async def imports(quick): return []
async def idle(quick): return []
