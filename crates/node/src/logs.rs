//! Container logs in the CRI format: read from the end, by time, followed through rotations.
//! Upstream counterparts: `pkg/kubelet/kuberuntime/logs`, `pkg/kubelet/logs`.

use bytes::Bytes;
use rustix::fs::inotify;
use skeg_base::Timestamp;
use skeg_runtime::{LogRotation, rotated_logs};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// Upstream's defaults of `containerLogMaxSize` and `containerLogMaxFiles`.
pub const ROTATION: LogRotation = LogRotation { bytes_max: 10 << 20, files_max: 5 };
const BLOCK: usize = 64 << 10;
/// The longest line kept whole while reading (the runtime cuts at 16 KiB).
const LINE_BYTES_MAX: u64 = 256 << 10;

/// What of a log is asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogOptions {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<usize>,
    pub since: Option<Timestamp>,
    pub limit_bytes: Option<u64>,
    /// `stdout` or `stderr` only.
    pub stream: Option<String>,
}

/// One line of the file, taken apart: `2026-01-01T00:00:00.0Z stdout F text`.
struct Line<'a> {
    time: &'a str,
    stream: &'a str,
    partial: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let mut word = || std::str::from_utf8(parts.next()?).ok();
    let (time, stream, tags) = (word()?, word()?, word()?);
    let partial = tags.split(':').next() == Some("P");
    Some(Line { time, stream, partial, text: parts.next().unwrap_or_default() })
}

/// Turns lines of the file into what the reader sees, within its limits.
struct Printer {
    options: LogOptions,
    left: u64,
    /// The line before was partial: its rest carries no time stamp of its own.
    continued: bool,
}

impl Printer {
    fn new(options: &LogOptions) -> Self {
        Printer { left: options.limit_bytes.unwrap_or(u64::MAX), options: options.clone(), continued: false }
    }

    fn print(&mut self, raw: &[u8], out: &mut Vec<u8>) {
        let Some(line) = parse(raw) else { return };
        if self.options.stream.as_ref().is_some_and(|wanted| wanted != line.stream) {
            return;
        }
        let old = |since: &Timestamp| line.time.parse::<Timestamp>().is_ok_and(|at| at < *since);
        if self.options.since.as_ref().is_some_and(old) {
            return;
        }
        let start = out.len();
        if self.options.timestamps && !self.continued {
            out.extend(line.time.as_bytes());
            out.push(b' ');
        }
        out.extend(line.text);
        if !line.partial {
            out.push(b'\n');
        }
        self.continued = line.partial;
        let added = (out.len() - start) as u64;
        if added > self.left {
            out.truncate(start + self.left as usize);
        }
        self.left = self.left.saturating_sub(added);
    }

    fn done(&self) -> bool {
        self.left == 0
    }
}

/// Sends the log's text. With `follow` it goes on until `ended` says the container has ended and
/// everything is sent, or the reader is gone.
pub async fn stream<F>(
    path: PathBuf,
    options: LogOptions,
    sender: mpsc::Sender<io::Result<Bytes>>,
    ended: F,
) -> io::Result<()>
where
    F: Future<Output = ()> + Send,
{
    // Watching begins before the first read: no line falls between.
    let watch = if options.follow { Some(watch(path.parent().unwrap_or(Path::new("/")))?) } else { None };
    let mut printer = Printer::new(&options);
    let mut reader = open(&path, options.tail_lines)?;
    tokio::pin!(ended);
    let mut over = false;
    let mut next = None;
    loop {
        loop {
            let (out, more) = read_some(&mut reader, &mut printer)?;
            if !out.is_empty() && sender.send(Ok(out.into())).await.is_err() {
                return Ok(());
            }
            if printer.done() {
                return Ok(());
            }
            if !more {
                break;
            }
        }
        let Some(watch) = &watch else { return Ok(()) };
        if let Some(next) = next.take() {
            reader = next;
            continue;
        }
        next = successor(&path, &reader.file)?.map(read_on).transpose()?;
        if next.is_some() {
            // The old file is read once more: lines came to it until there was a new one.
            continue;
        }
        if over {
            return Ok(());
        }
        tokio::select! {
            () = &mut ended => over = true,
            () = sender.closed() => return Ok(()),
            ready = watch.readable() => {
                let mut ready = ready?;
                // Which file changed does not matter: it is read on anyway.
                let mut buffer = [0u8; 4096];
                while rustix::io::read(watch.get_ref(), &mut buffer).is_ok_and(|n| n > 0) {}
                ready.clear_ready();
            }
        }
    }
}

fn watch(dir: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&fd, dir, events)?;
    // SAFETY: the AsyncFd owns the only handle of the descriptor, which closes when it is dropped.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

struct Reader {
    file: File,
    buffer: BufReader<File>,
    /// The beginning of a line that is not complete yet.
    pending: Vec<u8>,
}

fn open(path: &Path, tail: Option<usize>) -> io::Result<Reader> {
    let mut file = File::open(path)?;
    if let Some(lines) = tail {
        let at = tail_offset(&mut file, lines)?;
        file.seek(SeekFrom::Start(at))?;
    }
    read_on(file)
}

fn read_on(file: File) -> io::Result<Reader> {
    Ok(Reader { buffer: BufReader::with_capacity(BLOCK, file.try_clone()?), file, pending: Vec::new() })
}

/// Reads about a block; the flag says whether there may be more now.
fn read_some(reader: &mut Reader, printer: &mut Printer) -> io::Result<(Vec<u8>, bool)> {
    let mut out = Vec::new();
    while out.len() < BLOCK && !printer.done() {
        let n = (&mut reader.buffer).take(LINE_BYTES_MAX).read_until(b'\n', &mut reader.pending)?;
        if n == 0 {
            return Ok((out, false));
        }
        if reader.pending.last() == Some(&b'\n') {
            reader.pending.pop();
            printer.print(&reader.pending, &mut out);
            reader.pending.clear();
        } else if reader.pending.len() as u64 > LINE_BYTES_MAX {
            reader.pending.clear();
        }
    }
    Ok((out, true))
}

/// The file that was begun after `file`, which is or was the log `path`. A reader that was left
/// behind goes on with the oldest that is kept.
fn successor(path: &Path, file: &File) -> io::Result<Option<File>> {
    let there = |result: io::Result<File>| match result {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let number = |file: &File| file.metadata().map(|m| m.ino());
    // Opened before the others are listed: what is rotated between is known by its number.
    let Some(newest) = there(File::open(path))? else {
        // Its Pod is removed.
        return Ok(None);
    };
    let read = number(file)?;
    if read == number(&newest)? {
        return Ok(None);
    }
    let mut oldest = None;
    let mut found = false;
    for path in rotated_logs(path)? {
        let Some(rotated) = there(File::open(path))? else { continue };
        if found {
            return Ok(Some(rotated));
        }
        found = number(&rotated)? == read;
        oldest.get_or_insert(rotated);
    }
    Ok(oldest.filter(|_| !found).or(Some(newest)))
}

/// Removes all files of a log.
pub fn remove(path: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    let rotated = match rotated_logs(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    rotated.iter().map(PathBuf::as_path).chain([path]).try_for_each(|path| gone(fs::remove_file(path)))
}

/// Where the last `lines` lines begin.
fn tail_offset(file: &mut File, lines: usize) -> io::Result<u64> {
    let size = file.metadata()?.len();
    let mut at = size;
    let mut found = 0;
    let mut block = vec![0; BLOCK];
    if lines == 0 {
        return Ok(size);
    }
    while at > 0 {
        let n = at.min(BLOCK as u64);
        at -= n;
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut block[..n as usize])?;
        for (i, byte) in block[..n as usize].iter().enumerate().rev() {
            // The newline at the very end ends the last line, it does not begin another.
            if *byte == b'\n' && at + i as u64 + 1 < size {
                found += 1;
                if found == lines {
                    return Ok(at + i as u64 + 1);
                }
            }
        }
    }
    Ok(0)
}

/// The end of a log as plain text, for termination messages.
pub fn tail(path: &Path, lines: usize, bytes_max: usize) -> Vec<u8> {
    let read = || -> io::Result<Vec<u8>> {
        let mut reader = open(path, Some(lines))?;
        let mut printer = Printer::new(&LogOptions::default());
        let mut all = Vec::new();
        loop {
            let (out, more) = read_some(&mut reader, &mut printer)?;
            all.extend(out);
            if !more {
                return Ok(all);
            }
        }
    };
    let mut all = read().unwrap_or_default();
    let cut = all.len().saturating_sub(bytes_max);
    all.drain(..cut);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use skeg_runtime::LogFile;
    use std::time::Duration;

    fn log(lines: &[(&str, &str)]) -> String {
        lines
            .iter()
            .enumerate()
            .map(|(n, (tag, text))| format!("2026-01-01T00:00:0{n}.5Z stdout {tag} {text}\n"))
            .collect()
    }

    async fn read(path: &Path, options: LogOptions) -> String {
        let (sender, mut receiver) = mpsc::channel(4);
        let path = path.to_owned();
        let task = tokio::spawn(stream(path, options, sender, std::future::pending()));
        let mut out = Vec::new();
        while let Some(part) = receiver.recv().await {
            out.extend(part.unwrap());
        }
        task.await.unwrap().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn options_choose_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        fs::write(&path, log(&[("F", "a"), ("P", "b1"), ("F", "b2"), ("F", "c")])).unwrap();
        let plain = LogOptions::default();
        for (options, expected) in [
            (plain.clone(), "a\nb1b2\nc\n"),
            (LogOptions { tail_lines: Some(1), ..plain.clone() }, "c\n"),
            (LogOptions { tail_lines: Some(0), ..plain.clone() }, ""),
            (LogOptions { tail_lines: Some(99), ..plain.clone() }, "a\nb1b2\nc\n"),
            (LogOptions { limit_bytes: Some(4), ..plain.clone() }, "a\nb1"),
            (LogOptions { since: Some("2026-01-01T00:00:03Z".parse().unwrap()), ..plain.clone() }, "c\n"),
            (
                LogOptions { timestamps: true, tail_lines: Some(1), ..plain.clone() },
                "2026-01-01T00:00:03.5Z c\n",
            ),
        ] {
            assert_eq!(read(&path, options.clone()).await, expected, "{options:?}");
        }
        assert_eq!(tail(&path, 2, 3), b"\nc\n");
    }

    /// A log that is followed while it is written with the given limits.
    struct Followed {
        dir: tempfile::TempDir,
        log: LogFile,
        receiver: mpsc::Receiver<io::Result<Bytes>>,
        end: tokio::sync::oneshot::Sender<()>,
        task: tokio::task::JoinHandle<io::Result<()>>,
    }

    impl Followed {
        fn new(rotation: LogRotation) -> Followed {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("0.log");
            let log = LogFile::open(&path, Some(rotation)).unwrap();
            let (sender, receiver) = mpsc::channel(4);
            let (end, ended) = tokio::sync::oneshot::channel::<()>();
            let options = LogOptions { follow: true, ..Default::default() };
            let task = tokio::spawn(stream(path, options, sender, async move {
                let _ = ended.await;
            }));
            Followed { dir, log, receiver, end, task }
        }

        fn write(&mut self, text: &str) {
            self.log.append(log(&[("F", text)]).as_bytes());
        }

        /// Reads until this comes, and gives all before and with it.
        async fn until(&mut self, last: &str) -> String {
            let mut all = String::new();
            while !all.ends_with(last) {
                let part = tokio::time::timeout(Duration::from_secs(10), self.receiver.recv()).await;
                let part = part.unwrap_or_else(|_| panic!("{last:?} comes after {all:?}"));
                all.push_str(std::str::from_utf8(&part.unwrap().unwrap()).unwrap());
            }
            all
        }

        fn files(&self) -> usize {
            fs::read_dir(self.dir.path()).unwrap().count()
        }
    }

    #[tokio::test]
    async fn following_loses_no_line_through_rotations() {
        // A file has room for one line: each write but the first is a rotation.
        let mut it = Followed::new(LogRotation { bytes_max: 50, files_max: 5 });
        it.write("a");
        assert_eq!(it.until("a\n").await, "a\n");
        for round in 0..10 {
            // The reader does not run meanwhile: it is three files behind.
            let lines = ["x", "y", "z"].map(|name| format!("{name}{round}"));
            lines.iter().for_each(|line| it.write(line));
            assert_eq!(it.until(&format!("z{round}\n")).await, lines.map(|line| line + "\n").concat());
        }
        assert_eq!(it.files(), 5);
        // The rest comes also when the container has ended meanwhile.
        it.write("last but one");
        it.write("last");
        it.end.send(()).unwrap();
        let mut rest = Vec::new();
        while let Some(part) = it.receiver.recv().await {
            rest.extend(part.unwrap());
        }
        assert_eq!(String::from_utf8(rest).unwrap(), "last but one\nlast\n");
        it.task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_is_left_behind_goes_on_with_the_oldest_file() {
        let mut it = Followed::new(LogRotation { bytes_max: 50, files_max: 3 });
        it.write("a");
        assert_eq!(it.until("a\n").await, "a\n");
        for n in 0..9 {
            it.write(&n.to_string());
        }
        assert_eq!(it.until("8\n").await, "6\n7\n8\n");
        let path = it.dir.path().join("0.log");
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(it.files(), 0);
        it.end.send(()).unwrap();
        it.task.await.unwrap().unwrap();
    }
}
