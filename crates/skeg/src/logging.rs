//! Where log lines go: a bounded file, or JSON on standard error.

use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tracing_subscriber::EnvFilter;

/// The log file's size at which it is moved to `skeg.log.1`.
const LOG_MAX_BYTES: u64 = 16 << 20;

/// Starts logging. `SKEG_LOG` filters as tracing's directives do; the default is `info`.
pub fn start(path: Option<&Path>) -> Result<()> {
    let filter = EnvFilter::try_from_env("SKEG_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(true);
    match path {
        None => builder.json().with_writer(std::io::stderr).init(),
        Some(path) => {
            let file = BoundedFile::open(path)?;
            builder.with_ansi(false).with_writer(Mutex::new(file)).init();
        }
    }
    Ok(())
}

/// A file that starts anew when it is full, keeping one older file beside it.
struct BoundedFile {
    path: PathBuf,
    file: File,
    written: u64,
}

impl BoundedFile {
    fn open(path: &Path) -> Result<Self> {
        let file = append(path).with_context(|| format!("cannot open the log {}", path.display()))?;
        let written = file.metadata().map(|metadata| metadata.len()).unwrap_or(0);
        Ok(BoundedFile { path: path.to_owned(), file, written })
    }
}

fn append(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

impl Write for BoundedFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.written >= LOG_MAX_BYTES {
            std::fs::rename(&self.path, self.path.with_extension("log.1"))?;
            self.file = append(&self.path)?;
            self.written = 0;
        }
        let count = self.file.write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
