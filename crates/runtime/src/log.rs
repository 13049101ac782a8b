//! Container output as log lines in the CRI form: time, stream, `F` or `P` (partial), text.

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

/// The file the lines go to.
pub struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    /// Opens for appending; makes the directories above.
    pub fn open(path: &Path) -> io::Result<LogFile> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = Self::open_file(path)?;
        Ok(LogFile { path: path.to_owned(), file })
    }

    fn open_file(path: &Path) -> io::Result<File> {
        use std::os::unix::fs::OpenOptionsExt;
        OpenOptions::new().create(true).append(true).mode(0o640).open(path)
    }

    /// Goes on in a new file of the same name.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = Self::open_file(&self.path)?;
        Ok(())
    }

    /// A full disk loses lines; it must not stop the container.
    pub fn append(&mut self, lines: &[u8]) {
        let _ = self.file.write_all(lines);
    }
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
}
