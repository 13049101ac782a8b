//! Container output as log lines in the CRI form: time, stream, `F` or `P` (partial), text; and the
//! files that they go to.

use crate::sys;
use crate::types::LogRotation;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Longer lines are split, with all but their last part marked partial.
const LINE_LEN_MAX: usize = 16 * 1024;

/// The text of one stream that has not ended with a newline yet.
#[derive(Default)]
pub struct Partial(Vec<u8>);

/// Appends the whole lines of `partial` + `chunk` to `out`; keeps the rest in `partial`.
pub fn format_lines(out: &mut Vec<u8>, time: &str, stream: &str, partial: &mut Partial, chunk: &[u8]) {
    let mut line = |tag: u8, head: &[u8], tail: &[u8]| {
        out.extend_from_slice(time.as_bytes());
        out.push(b' ');
        out.extend_from_slice(stream.as_bytes());
        out.extend_from_slice(&[b' ', tag, b' ']);
        out.extend_from_slice(head);
        out.extend_from_slice(tail);
        out.push(b'\n');
    };
    let mut rest = chunk;
    while !rest.is_empty() {
        let newline = rest.iter().position(|b| *b == b'\n');
        let room = LINE_LEN_MAX - partial.0.len();
        match newline {
            Some(at) if at <= room => {
                line(b'F', &partial.0, &rest[..at]);
                partial.0 = Vec::new();
                rest = &rest[at + 1..];
            }
            _ if rest.len() > room => {
                line(b'P', &partial.0, &rest[..room]);
                partial.0 = Vec::new();
                rest = &rest[room..];
            }
            _ => {
                partial.0.extend_from_slice(rest);
                rest = &[];
            }
        }
    }
}

/// Writes what is left of a stream that ended without a newline.
pub fn format_end(out: &mut Vec<u8>, time: &str, stream: &str, partial: &mut Partial) {
    let rest = std::mem::take(&mut partial.0);
    if !rest.is_empty() {
        out.extend_from_slice(format!("{time} {stream} P ").as_bytes());
        out.extend_from_slice(&rest);
        out.push(b'\n');
    }
}

/// Nanoseconds since the epoch as RFC 3339 in UTC with nine digits.
pub fn timestamp(ns: i64) -> String {
    let (seconds, nanos) = (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a date by eras of 400 years that start on 1 March, so the leap day comes last.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// The file the lines go to, and those it left behind: `0.log`, `0.log.20260102-030405.000000006`.
pub struct LogFile {
    path: PathBuf,
    file: File,
    len_bytes: u64,
    rotation: Option<LogRotation>,
    /// Of the last file left behind; the next one is younger whatever the clock does.
    rotated_at_ns: i64,
}

impl LogFile {
    /// Opens for appending; makes the directories above. Without `rotation` the file grows until
    /// [`LogFile::reopen`].
    pub fn open(path: &Path, rotation: Option<LogRotation>) -> io::Result<LogFile> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = Self::open_file(path)?;
        let len_bytes = file.metadata()?.len();
        Ok(LogFile { path: path.to_owned(), file, len_bytes, rotation, rotated_at_ns: 0 })
    }

    fn open_file(path: &Path) -> io::Result<File> {
        use std::os::unix::fs::OpenOptionsExt;
        OpenOptions::new().create(true).append(true).mode(0o640).open(path)
    }

    /// Goes on in a new file of the same name.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = Self::open_file(&self.path)?;
        self.len_bytes = self.file.metadata()?.len();
        Ok(())
    }

    /// Writes whole lines, into a new file where the present one has no room for them. A full disk
    /// loses lines; it must not stop the container.
    pub fn append(&mut self, lines: &[u8]) {
        let len_bytes = lines.len() as u64;
        if let Some(rotation) = self.rotation
            && self.len_bytes > 0
            && self.len_bytes.saturating_add(len_bytes) > rotation.bytes_max
        {
            // What fails here (a full disk) is tried again with the next lines.
            let _ = self.rotate(rotation.files_max);
        }
        if self.file.write_all(lines).is_ok() {
            self.len_bytes = self.len_bytes.saturating_add(len_bytes);
        }
    }

    /// Readers find a file under the log's name at all times, and each file under one name or
    /// another until its turn to go.
    fn rotate(&mut self, files_max: usize) -> io::Result<()> {
        let old = rotated_logs(&self.path)?;
        let surplus = (old.len() + 2).saturating_sub(files_max.max(2)).min(old.len());
        for path in &old[..surplus] {
            fs::remove_file(path)?;
        }
        self.rotated_at_ns = sys::realtime_ns().max(self.rotated_at_ns + 1);
        let time = timestamp(self.rotated_at_ns).replace(['-', ':', 'Z'], "").replace('T', "-");
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let left = self.path.with_file_name(format!("{name}.{time}"));
        let next = self.path.with_file_name(format!(".{name}.next"));
        let file = Self::open_file(&next)?;
        match fs::hard_link(&self.path, &left) {
            // Somebody took the file away: nothing is left behind.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        if let Err(e) = fs::rename(&next, &self.path) {
            let _ = fs::remove_file(&left);
            return Err(e);
        }
        (self.file, self.len_bytes) = (file, 0);
        Ok(())
    }
}

/// The files that a log left behind, oldest first.
pub fn rotated_logs(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> String {
        let (mut out, mut partial) = (Vec::new(), Partial::default());
        for chunk in chunks {
            format_lines(&mut out, "T", "stdout", &mut partial, chunk);
        }
        format_end(&mut out, "T", "stdout", &mut partial);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_tagged() {
        assert_eq!(lines(&[b"a\nb", b"c\n\nd"]), "T stdout F a\nT stdout F bc\nT stdout F \nT stdout P d\n");
        let long = vec![b'x'; LINE_LEN_MAX + 3];
        let written = lines(&[&long, b"y\n"]);
        let mut written = written.lines();
        assert_eq!(written.next().unwrap().len(), "T stdout P ".len() + LINE_LEN_MAX);
        assert_eq!(written.next(), Some("T stdout F xxxy"));
        let exact = vec![b'x'; LINE_LEN_MAX];
        assert_eq!(lines(&[&exact, b"\n"]).lines().count(), 1);
    }

    #[test]
    fn timestamps() {
        for (ns, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (1_709_164_800_000_000_001, "2024-02-29T00:00:00.000000001Z"),
            (1_795_478_399_999_999_999, "2026-11-23T23:59:59.999999999Z"),
        ] {
            assert_eq!(timestamp(ns), text);
        }
    }

    #[test]
    fn large_logs_are_rotated_and_the_oldest_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        fs::write(dir.path().join("10.log"), "another's").unwrap();
        let rotation = LogRotation { bytes_max: 10, files_max: 3 };
        let mut log = LogFile::open(&path, Some(rotation)).unwrap();
        let all = || -> Vec<String> {
            let mut files = rotated_logs(&path).unwrap();
            files.push(path.clone());
            files.iter().map(|f| fs::read_to_string(f).unwrap()).collect()
        };
        let steps: [(&str, &[&str]); 7] = [
            ("aaa\n", &["aaa\n"]),
            ("bbbbb\n", &["aaa\nbbbbb\n"]),
            ("c\n", &["aaa\nbbbbb\n", "c\n"]),
            ("longer than the limit\n", &["aaa\nbbbbb\n", "c\n", "longer than the limit\n"]),
            ("d\n", &["c\n", "longer than the limit\n", "d\n"]),
            ("eeeeeeeee\n", &["longer than the limit\n", "d\n", "eeeeeeeee\n"]),
            ("f\n", &["d\n", "eeeeeeeee\n", "f\n"]),
        ];
        for (line, files) in steps {
            log.append(line.as_bytes());
            assert_eq!(all(), files, "after {line:?}");
        }
        // A supervisor that takes the log up again knows how large it is.
        let mut log = LogFile::open(&path, Some(rotation)).unwrap();
        log.append(b"gggggggg\n");
        assert_eq!(all(), ["eeeeeeeee\n", "f\n", "gggggggg\n"]);
        fs::remove_file(&path).unwrap();
        log.append(b"hh\n");
        assert_eq!(all(), ["f\n", "hh\n"], "somebody took the log away");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "no other file is left or gone");
    }
}
