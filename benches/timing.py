"""How long a call takes: the Python half of benches/timing/mod.rs."""
import time


def timed(call, seconds, least):
    """Minimum and median in ms, after one warm-up call; calls repeat for `seconds`, at least `least` and at most 30 times."""
    call()
    start, times = time.perf_counter(), []
    while len(times) < least or (time.perf_counter() - start < seconds and len(times) < 30):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    times.sort()
    return times[0], times[len(times) // 2]
