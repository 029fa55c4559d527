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

/// Bytes of this process that lie in memory; `None` where the system does not say.
pub(crate) fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    // 4 KiB on every machine that libtorch is built for, but for some of Arm's; there it counts too little.
    Some(pages * 4096)
}

/// Calls `call` again and again and looks whether the process grows; `bytes` of new tensors are lent in each call.
pub(crate) fn examine(bytes: usize, mut call: impl FnMut() -> Result<()>) -> Verdict {
    if resident().is_none() {
        return skip("this system does not tell the size of a process");
    }
    let started = Instant::now();
    // What is made once, caches among it, is made by now.
    for _ in 0..10 {
        call()?;
    }
    let each = started.elapsed() / 10;
    let calls = if each.is_zero() { CALLS } else { CALLS.min((BUDGET.as_nanos() / each.as_nanos()) as usize).max(40) };
    for _ in 0..calls / 10 {
        call()?;
    }
    let before = resident().unwrap_or(0);
    for _ in 0..calls {
        call()?;
    }
    let grown = resident().unwrap_or(0).saturating_sub(before);
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
    let fewer = if calls < CALLS { format!(" (one takes {:.0} ms)", each.as_secs_f64() * 1e3) } else { String::new() };
    ok(format!("{grown_mb:.1} MB more after {calls} calls{fewer} that were lent {lent_mb:.0} MB"))
}
