//! Memory over many calls.

use std::time::{Duration, Instant};

use advdmd_sdk::Result;

use crate::report::{Verdict, fail, ok, skip};

/// Calls of a quick component.
const CALLS: usize = 1000;
/// The most time that the calls may take together; a slow component has fewer.
const BUDGET: Duration = Duration::from_secs(6);
/// Below this, growth of the process says nothing.
const NOISE: u64 = 6 << 20;
/// Bytes to lend in all calls together, so that a component that keeps all of it, or a good part, stands out of the noise.
const TELLING: usize = 4 * NOISE as usize;
/// The fewest calls of a slow component.
const FEWEST: usize = 40;
/// Calls before those that count.
const WARM_UP: u32 = 10;
/// The most that is lent in a call, as a multiple of the least.
const MOST: usize = 256;

/// Bytes of this process that lie in memory; `None` where the system does not say.
pub(crate) fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    // 4 KiB on every machine that libtorch is built for, but for some of Arm's; there it counts too little.
    Some(pages * 4096)
}

/// Calls `call` again and again and looks whether the process grows. `lend` makes what is lent in a call, so many times the
/// least of it, and says how many bytes of new tensors that is.
pub(crate) fn examine<T>(lend: impl Fn(usize) -> (T, usize), call: impl FnMut(&T) -> Result<()>) -> Verdict {
    within(BUDGET, resident, lend, call)
}

/// The same within this time, with `size` for that of the process.
fn within<T>(
    budget: Duration,
    size: impl Fn() -> Option<u64>,
    lend: impl Fn(usize) -> (T, usize),
    mut call: impl FnMut(&T) -> Result<()>,
) -> Verdict {
    if size().is_none() {
        return skip("this system does not tell the size of a process");
    }
    let mut times = 1;
    let (given, bytes, each, calls, tells) = loop {
        let (given, bytes) = lend(times);
        let started = Instant::now();
        // What is made once, caches among it, is made by now.
        for _ in 0..WARM_UP {
            call(&given)?;
        }
        let each = started.elapsed() / WARM_UP;
        let affordable = budget.as_nanos() / each.as_nanos().max(1);
        let calls = usize::try_from(affordable).unwrap_or(CALLS).clamp(FEWEST, CALLS);
        let tells = if bytes == 0 { calls == CALLS } else { bytes * calls >= TELLING };
        if tells || bytes == 0 || times >= MOST || each * FEWEST as u32 > budget * 4 {
            break (given, bytes, each, calls, tells);
        }
        times *= 2;
    };
    for _ in 0..calls / 10 {
        call(&given)?;
    }
    let before = size().unwrap_or(0);
    for _ in 0..calls {
        call(&given)?;
    }
    let grown = size().unwrap_or(0).saturating_sub(before);
    let lent = (bytes * calls) as u64;
    let allowed = NOISE.max(lent / 8);
    let [grown_mb, allowed_mb, lent_mb] = [grown, allowed, lent].map(|bytes| bytes as f64 / f64::from(1 << 20));
    if grown > allowed {
        return fail(
            format!("a process that stays as large as it is, within {allowed_mb:.0} MB, over {calls} calls"),
            format!("{grown_mb:.0} MB more; the inputs of all calls were {lent_mb:.0} MB"),
            "keep no tensor or list that grows with each call; free what is made (no `mem::forget`, no `Box::leak`)",
        );
    }
    let took = each.as_secs_f64() * 1e3;
    if !tells {
        return skip(format!(
            "too slow to tell: one call takes {took:.0} ms, and {calls} of them, lent {lent_mb:.1} MB, could leak that unseen"
        ));
    }
    let fewer = if calls < CALLS { format!(" (one takes {took:.0} ms)") } else { String::new() };
    ok(format!("{grown_mb:.1} MB more after {calls} calls{fewer} that were lent {lent_mb:.0} MB"))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::thread::sleep;

    use super::*;
    use crate::report::Passed;

    const BUDGET: Duration = Duration::from_millis(200);

    /// A component that takes so long for each call, is lent `bytes` or more, and may keep as much. The size is that of what it
    /// keeps alone: other tests share the process.
    fn slow(each: Duration, bytes: usize, leaks: bool) -> Verdict {
        let kept = Cell::new(0);
        let lend = |times| (times * bytes, times * bytes);
        within(
            BUDGET,
            || Some(kept.get()),
            lend,
            |&lent| {
                sleep(each);
                kept.set(kept.get() + if leaks { lent as u64 } else { 0 });
                Ok(())
            },
        )
    }

    #[test]
    fn a_slow_component_that_leaks_all_is_never_ok() {
        let (quick, slow_call) = (Duration::from_millis(1), Duration::from_millis(40));
        // A leak of 40 calls of the least size would be lost in the noise: they are lent more.
        let said = slow(quick, 64 << 10, false);
        assert!(matches!(said, Ok(Passed::Ok(_))), "{said:?}");
        let said = slow(quick, 64 << 10, true);
        assert!(said.is_err(), "{said:?}");
        // Too slow for that.
        for leaks in [false, true] {
            let said = slow(slow_call, 64 << 10, leaks);
            assert!(matches!(&said, Ok(Passed::Skipped(why)) if why.starts_with("too slow to tell: ")), "{said:?}");
        }
        // What is lent nothing can only be slow, or not.
        assert!(matches!(slow(quick, 0, false), Ok(Passed::Skipped(_))));
    }
}
