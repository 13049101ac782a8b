//! Writes the seeds of each target as files, for libFuzzer: `seeds DIRECTORY`.

use std::io::{Error, Result};
use std::path::Path;

fn main() -> Result<()> {
    let directory = std::env::args_os().nth(1).ok_or_else(|| Error::other("name a directory"))?;
    for target in skeg_fuzz::TARGETS {
        let of_target = Path::new(&directory).join(target.name);
        std::fs::create_dir_all(&of_target)?;
        for (n, seed) in target.seeds.iter().enumerate() {
            std::fs::write(of_target.join(format!("seed-{n}")), seed)?;
        }
    }
    Ok(())
}
