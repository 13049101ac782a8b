//! One target, driven by libFuzzer: `SKEG_FUZZ_TARGET` names it. With `SKEG_FUZZ_SEEDS` it only writes
//! the seeds of each target as files there.

#![no_main]
#![allow(clippy::expect_used, reason = "a fuzzer that is started wrongly has nobody else to tell")]

use libfuzzer_sys::fuzz_target;
use std::io::Result;
use std::path::Path;
use std::sync::LazyLock;

static TARGET: LazyLock<&'static skeg_fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("SKEG_FUZZ_TARGET").unwrap_or_default();
    skeg_fuzz::target(&name).expect("SKEG_FUZZ_TARGET names a target: start it by `cargo xtask fuzz`")
});

fn write_seeds(directory: &Path) -> Result<()> {
    for target in skeg_fuzz::TARGETS {
        let of_target = directory.join(target.name);
        std::fs::create_dir_all(&of_target)?;
        for (n, seed) in target.seeds.iter().enumerate() {
            std::fs::write(of_target.join(format!("seed-{n}")), seed)?;
        }
    }
    Ok(())
}

fuzz_target!(
    init: {
        if let Some(directory) = std::env::var_os("SKEG_FUZZ_SEEDS") {
            write_seeds(directory.as_ref()).expect("a directory for the seeds");
            std::process::exit(0);
        }
    },
    |data: &[u8]| (TARGET.run)(data)
);
