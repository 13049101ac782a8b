//! One target, driven by libFuzzer: `SKEG_FUZZ_TARGET` names it.

#![no_main]
#![allow(clippy::expect_used, reason = "a fuzzer that is started wrongly has nobody else to tell")]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static TARGET: LazyLock<&'static skeg_fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("SKEG_FUZZ_TARGET").unwrap_or_default();
    skeg_fuzz::target(&name).expect("SKEG_FUZZ_TARGET names a target: start it by `cargo xtask fuzz`")
});

fuzz_target!(|data: &[u8]| (TARGET.run)(data));
