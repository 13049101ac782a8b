//! Unpacks one layer tar into a directory that overlayfs can use as a lower layer: whiteouts
//! become 0/0 character devices, opaque markers an attribute. Nothing in the tar can reach
//! outside the directory: parents are opened with `RESOLVE_IN_ROOT`, and last components are
//! never followed. Blocking; run it on a thread meant for that.

use crate::manifest::digest_text;
use crate::{Error, Result, io};
use rustix::fs::{
    self, AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self as stdio, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tar::EntryType;

/// zstd frames that need a larger window than 128 MiB are refused: an allocation an image chooses.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const COPY_BLOCK: usize = 64 << 10;
const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// What unpacking found out.
#[derive(Debug)]
pub struct Unpacked {
    /// Digest of the uncompressed tar.
    pub diff_id: String,
    /// Digest of the bytes as read.
    pub digest: String,
    /// Directories that no entry named: they take their attributes from the layers below.
    pub implicit: Vec<PathBuf>,
}

/// Unpacks `source` (tar, plain or compressed with gzip or zstd) into the existing, empty `root`,
/// and makes it durable.
pub fn unpack(source: impl Read, root: &Path) -> Result<Unpacked> {
    let mut raw = BufReader::with_capacity(COPY_BLOCK, Hashing::new(source));
    let (diff_id, implicit) = {
        let plain = decompressed(&mut raw)?;
        let mut archive = tar::Archive::new(Hashing::new(plain));
        let mut target = Target::open(root)?;
        for entry in archive.entries().map_err(bad_tar)? {
            target.apply(entry.map_err(bad_tar)?)?;
        }
        let mut rest = archive.into_inner();
        // What follows the end marker (padding) counts for the digest too.
        stdio::copy(&mut rest, &mut stdio::sink()).map_err(bad_tar)?;
        (rest.finish(), target.finish()?)
    };
    stdio::copy(&mut raw, &mut stdio::sink()).map_err(bad_tar)?;
    Ok(Unpacked { diff_id, digest: raw.into_inner().finish(), implicit })
}

/// Gives `implicit` directories of the layer at `root` the owner and mode they have below.
pub fn inherit_attributes(root: &Path, implicit: &[PathBuf], below_topmost_first: &[PathBuf]) -> Result<()> {
    let roots: Vec<OwnedFd> = below_topmost_first.iter().map(|dir| open_root(dir)).collect::<Result<_>>()?;
    let own = open_root(root)?;
    for dir in implicit {
        let found = roots.iter().find_map(|below| {
            let fd = open_in(below, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW).ok()?;
            fs::fstat(&fd).ok()
        });
        let Some(stat) = found else { continue };
        let fd = open_in(&own, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)
            .map_err(|e| at("open", dir, e))?;
        fs::fchown(&fd, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
            .map_err(|e| at("chown", dir, e))?;
        fs::fchmod(&fd, Mode::from_raw_mode(stat.st_mode)).map_err(|e| at("chmod", dir, e))?;
    }
    Ok(())
}

/// The tar inside, told by its first bytes: media types are not always honest.
pub fn decompressed<'a>(source: &'a mut (impl BufRead + 'a)) -> Result<Box<dyn Read + 'a>> {
    let magic = source.fill_buf().map_err(io("read layer"))?;
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source).map_err(io("zstd"))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(io("zstd"))?;
            Box::new(decoder)
        }
        _ => Box::new(source),
    })
}

fn bad_tar(error: stdio::Error) -> Error {
    match error.kind() {
        stdio::ErrorKind::InvalidData | stdio::ErrorKind::UnexpectedEof | stdio::ErrorKind::InvalidInput => {
            Error::Invalid(format!("layer: {error}"))
        }
        _ => Error::Io { what: "read layer".into(), source: error },
    }
}

fn at(what: &str, path: &Path, errno: Errno) -> Error {
    Error::Io { what: format!("{what} {}", path.display()), source: errno.into() }
}

fn open_root(dir: &Path) -> Result<OwnedFd> {
    fs::openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| at("open", dir, e))
}

fn open_in(root: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    fs::openat2(
        root,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

struct Target {
    root: OwnedFd,
    /// The last parent directory: tars list siblings together.
    parent: Option<(PathBuf, Rc<OwnedFd>)>,
    implicit: Vec<PathBuf>,
    /// Directory times are set last: adding entries changes them.
    times: Vec<(PathBuf, Timestamps)>,
}

/// The attributes an entry carries.
struct Attributes {
    uid: u32,
    gid: u32,
    mode: u32,
    times: Timestamps,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Target {
    fn open(root: &Path) -> Result<Self> {
        Ok(Target { root: open_root(root)?, parent: None, implicit: Vec::new(), times: Vec::new() })
    }

    fn apply<R: Read>(&mut self, mut entry: tar::Entry<'_, R>) -> Result<()> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let raw = entry.path().map_err(bad_tar)?.into_owned();
        let path = clean(&raw)?;
        let attributes = Attributes::of(&mut entry)?;
        let (Some(name), parent_path) =
            (path.file_name().map(PathBuf::from), path.parent().unwrap_or(Path::new("")))
        else {
            // The root directory itself.
            return self.directory_attributes(Path::new(""), &attributes);
        };
        let parent = self.parent(parent_path)?;
        if let Some(text) = name.to_str().and_then(|n| n.strip_prefix(WHITEOUT)) {
            return self.whiteout(&parent, &path, text, name.as_os_str() == OPAQUE);
        }
        let stat = fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let is_dir = stat.is_some_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
        if stat.is_some() && !(is_dir && kind.is_dir()) {
            self.remove(&parent, &name, is_dir).map_err(|e| at("replace", &path, e))?;
        }
        match kind {
            EntryType::Directory => {
                if !is_dir {
                    fs::mkdirat(&parent, &name, Mode::from_raw_mode(0o755))
                        .map_err(|e| at("mkdir", &path, e))?;
                }
                self.implicit.retain(|dir| dir != &path);
                self.directory_attributes(&path, &attributes)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                regular(&parent, &name, &mut entry, &attributes)
                    .map_err(io(format!("write {}", path.display())))
            }
            EntryType::Symlink => {
                let link = entry.link_name().map_err(bad_tar)?.ok_or_else(|| no_link(&path))?;
                fs::symlinkat(link.as_ref(), &parent, &name).map_err(|e| at("symlink", &path, e))?;
                attributes.set_at(&parent, &name, false).map_err(|e| at("set attributes of", &path, e))
            }
            EntryType::Link => {
                let link = entry.link_name().map_err(bad_tar)?.ok_or_else(|| no_link(&path))?;
                let source = clean(&link)?;
                let source_name = source.file_name().ok_or_else(|| no_link(&path))?.to_owned();
                let source_parent = self.parent(source.parent().unwrap_or(Path::new("")))?;
                fs::linkat(&source_parent, Path::new(&source_name), &parent, &name, AtFlags::empty())
                    .map_err(|e| at("link", &path, e))
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let header = entry.header();
                let number =
                    |part: stdio::Result<Option<u32>>| part.map_err(bad_tar).map(Option::unwrap_or_default);
                let device = fs::makedev(number(header.device_major())?, number(header.device_minor())?);
                let file_type = match kind {
                    EntryType::Char => FileType::CharacterDevice,
                    EntryType::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                fs::mknodat(&parent, &name, file_type, Mode::from_raw_mode(attributes.mode), device)
                    .map_err(|e| at("mknod", &path, e))?;
                attributes.set_at(&parent, &name, true).map_err(|e| at("set attributes of", &path, e))
            }
            _ => Err(Error::Invalid(format!("layer entry {} of unknown type", path.display()))),
        }
    }

    fn whiteout(&mut self, parent: &OwnedFd, path: &Path, hidden: &str, opaque: bool) -> Result<()> {
        if opaque {
            let dir = path.parent().unwrap_or(Path::new(""));
            let fd = open_in(&self.root, dir, OFlags::RDONLY | OFlags::DIRECTORY)
                .map_err(|e| at("open", dir, e))?;
            return fs::fsetxattr(&fd, "trusted.overlay.opaque", b"y", XattrFlags::empty())
                .map_err(|e| at("mark opaque", dir, e));
        }
        if hidden.starts_with(".wh.") {
            // Bookkeeping of aufs, meaningless to anything else.
            return Ok(());
        }
        if matches!(hidden, "" | "." | "..") {
            return Err(Error::Invalid(format!("whiteout {}", path.display())));
        }
        let name = Path::new(hidden);
        if let Ok(stat) = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            self.remove(parent, name, is_dir).map_err(|e| at("replace", path, e))?;
        }
        fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0)
            .map_err(|e| at("whiteout", path, e))
    }

    /// The directory at `path`, made where it is missing.
    fn parent(&mut self, path: &Path) -> Result<Rc<OwnedFd>> {
        if let Some((last, fd)) = &self.parent
            && last == path
        {
            return Ok(fd.clone());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let fd = match open_in(&self.root, path, flags) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => {
                let mut made = PathBuf::new();
                for part in path.components() {
                    let above = open_in(&self.root, &made, flags).map_err(|e| at("open", &made, e))?;
                    made.push(part);
                    match fs::mkdirat(&above, Path::new(part.as_os_str()), Mode::from_raw_mode(0o755)) {
                        Ok(()) => self.implicit.push(made.clone()),
                        Err(Errno::EXIST) => {}
                        Err(e) => return Err(at("mkdir", &made, e)),
                    }
                }
                open_in(&self.root, path, flags).map_err(|e| at("open", path, e))?
            }
            Err(e) => return Err(at("open", path, e)),
        };
        let fd = Rc::new(fd);
        self.parent = Some((path.to_owned(), fd.clone()));
        Ok(fd)
    }

    fn remove(&mut self, parent: &OwnedFd, name: &Path, is_dir: bool) -> rustix::io::Result<()> {
        self.parent = None;
        if !is_dir {
            return fs::unlinkat(parent, name, AtFlags::empty());
        }
        remove_tree(parent, name)
    }

    fn directory_attributes(&mut self, path: &Path, attributes: &Attributes) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let fd = open_in(&self.root, path, flags).map_err(|e| at("open", path, e))?;
        attributes.set(&fd).map_err(|e| at("set attributes of", path, e))?;
        self.times.push((path.to_owned(), attributes.times.clone()));
        Ok(())
    }

    fn finish(self) -> Result<Vec<PathBuf>> {
        for (path, times) in self.times.iter().rev() {
            // A directory that a later entry replaced is gone; its times with it.
            if let Ok(fd) = open_in(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
                fs::futimens(&fd, times).map_err(|e| at("set times of", path, e))?;
            }
        }
        fs::syncfs(&self.root).map_err(|e| at("sync", Path::new("layer"), e))?;
        Ok(self.implicit)
    }
}

/// Removes a directory and what is in it, never following a link.
fn remove_tree(parent: &OwnedFd, name: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = fs::openat(parent, name, flags, Mode::empty())?;
    for entry in fs::Dir::read_from(&dir)? {
        let entry = entry?;
        let bytes = entry.file_name().to_bytes();
        if bytes == b"." || bytes == b".." {
            continue;
        }
        let child = PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes));
        match fs::unlinkat(&dir, &child, AtFlags::empty()) {
            Err(Errno::ISDIR) => remove_tree(&dir, &child)?,
            other => other?,
        }
    }
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn no_link(path: &Path) -> Error {
    Error::Invalid(format!("layer link {} without target", path.display()))
}

/// Relative, without `.` parts. A `..` part has no honest use in a layer.
fn clean(path: &Path) -> Result<PathBuf> {
    use std::path::Component;
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::Invalid(format!("layer entry {} leaves its root", path.display())));
            }
        }
    }
    Ok(out)
}

fn regular<R: Read>(
    parent: &OwnedFd,
    name: &Path,
    entry: &mut R,
    attributes: &Attributes,
) -> stdio::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))?);
    copy_sparse(entry, &mut file)?;
    attributes.set(&file)?;
    fs::futimens(&file, &attributes.times)?;
    Ok(())
}

/// Copies, leaving holes where whole blocks are zero.
fn copy_sparse(from: &mut impl Read, to: &mut File) -> stdio::Result<()> {
    let mut block = vec![0u8; COPY_BLOCK];
    let (mut length, mut hole) = (0u64, false);
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match from.read(&mut block[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        if filled == 0 {
            break;
        }
        length += filled as u64;
        hole = filled == block.len() && block.iter().all(|b| *b == 0);
        if hole {
            to.seek(SeekFrom::Current(filled as i64))?;
        } else {
            to.write_all(&block[..filled])?;
        }
    }
    if hole { to.set_len(length) } else { Ok(()) }
}

impl Attributes {
    fn of<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Self> {
        let header = entry.header();
        let id = |n: stdio::Result<u64>| n.map_err(bad_tar).map(|n| n as u32);
        let (mut uid, mut gid) = (id(header.uid())?, id(header.gid())?);
        let mode = header.mode().map_err(bad_tar)? & 0o7777;
        let mut mtime = Timespec { tv_sec: header.mtime().map_err(bad_tar)? as i64, tv_nsec: 0 };
        let mut xattrs = Vec::new();
        if let Some(extensions) = entry.pax_extensions().map_err(bad_tar)? {
            for extension in extensions {
                let extension = extension.map_err(bad_tar)?;
                let (Ok(key), value) = (extension.key(), extension.value_bytes()) else { continue };
                let text = || std::str::from_utf8(value).ok();
                match key {
                    "uid" => uid = text().and_then(|v| v.parse().ok()).unwrap_or(uid),
                    "gid" => gid = text().and_then(|v| v.parse().ok()).unwrap_or(gid),
                    "mtime" => mtime = text().and_then(pax_time).unwrap_or(mtime),
                    _ => {
                        // `trusted.` belongs to overlayfs: an image must not steer it.
                        if let Some(name) = key.strip_prefix("SCHILY.xattr.")
                            && !name.starts_with("trusted.")
                        {
                            xattrs.push((name.to_owned(), value.to_vec()));
                        }
                    }
                }
            }
        }
        Ok(Attributes {
            uid,
            gid,
            mode,
            times: Timestamps { last_access: mtime, last_modification: mtime },
            xattrs,
        })
    }

    fn owner(&self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }

    /// Owner first: changing it clears set-id bits and file capabilities.
    fn set(&self, fd: impl AsFd) -> rustix::io::Result<()> {
        let (uid, gid) = self.owner();
        fs::fchown(&fd, uid, gid)?;
        fs::fchmod(&fd, Mode::from_raw_mode(self.mode))?;
        for (name, value) in &self.xattrs {
            match fs::fsetxattr(&fd, name.as_str(), value, XattrFlags::empty()) {
                // Not every file system keeps every attribute; upstream unpackers go on too.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn set_at(&self, parent: &OwnedFd, name: &Path, with_mode: bool) -> rustix::io::Result<()> {
        let (uid, gid) = self.owner();
        fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        if with_mode {
            // The node was made by us a moment ago and is no symlink.
            fs::chmodat(parent, name, Mode::from_raw_mode(self.mode), AtFlags::empty())?;
        }
        fs::utimensat(parent, name, &self.times, AtFlags::SYMLINK_NOFOLLOW)
    }
}

fn pax_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: nanos.parse().ok()? })
}

/// Hashes what passes through.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R> Hashing<R> {
    fn new(inner: R) -> Self {
        Hashing { inner, hash: Sha256::new() }
    }

    fn finish(self) -> String {
        digest_text(&self.hash.finalize())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> stdio::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

    type Tar = tar::Builder<Vec<u8>>;

    fn header(kind: EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_700_000_000);
        header
    }

    fn file(tar: &mut Tar, path: &str, content: &[u8]) {
        tar.append_data(&mut header(EntryType::Regular, 0o640, content.len() as u64), path, content).unwrap();
    }

    fn link(tar: &mut Tar, kind: EntryType, path: &str, to: &str) {
        tar.append_link(&mut header(kind, 0o777, 0), path, to).unwrap();
    }

    /// A header whose name the builder would refuse.
    fn raw(tar: &mut Tar, kind: EntryType, path: &str, content: &[u8]) {
        let mut header = header(kind, 0o644, content.len() as u64);
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        tar.append(&header, content).unwrap();
    }

    fn done(tar: Tar) -> Vec<u8> {
        tar.into_inner().unwrap()
    }

    #[test]
    fn files_links_modes_and_times_survive_each_compression() {
        let mut tar = Tar::new(Vec::new());
        tar.append_data(&mut header(EntryType::Directory, 0o1777, 0), "tmp/", &[][..]).unwrap();
        file(&mut tar, "tmp/a", b"hello");
        link(&mut tar, EntryType::Link, "tmp/hard", "tmp/a");
        link(&mut tar, EntryType::Symlink, "tmp/soft", "/etc/passwd");
        file(&mut tar, "deep/er/zeros", &vec![0; 3 * COPY_BLOCK]);
        let plain = done(tar);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let zstd = zstd::encode_all(&plain[..], 1).unwrap();
        for bytes in [plain.clone(), gzip.finish().unwrap(), zstd] {
            let dir = tempfile::tempdir().unwrap();
            let unpacked = unpack(&bytes[..], dir.path()).unwrap();
            assert_eq!(unpacked.diff_id, crate::manifest::digest_of(&plain));
            assert_eq!(unpacked.digest, crate::manifest::digest_of(&bytes));
            assert_eq!(unpacked.implicit, [PathBuf::from("deep"), PathBuf::from("deep/er")]);
            let a = std::fs::metadata(dir.path().join("tmp/a")).unwrap();
            assert_eq!((a.uid(), a.gid(), a.mode() & 0o7777, a.nlink()), (1000, 1001, 0o640, 2));
            assert_eq!(std::fs::metadata(dir.path().join("tmp")).unwrap().mtime(), 1_700_000_000);
            assert_eq!(
                std::fs::metadata(dir.path().join("tmp")).unwrap().permissions().mode() & 0o7777,
                0o1777
            );
            assert_eq!(std::fs::read_link(dir.path().join("tmp/soft")).unwrap(), Path::new("/etc/passwd"));
            let zeros = std::fs::metadata(dir.path().join("deep/er/zeros")).unwrap();
            assert_eq!((zeros.len(), zeros.blocks()), (3 * COPY_BLOCK as u64, 0));
        }
    }

    #[test]
    fn whiteouts_become_overlay_ones() {
        let mut tar = Tar::new(Vec::new());
        file(&mut tar, "dir/.wh.gone", b"");
        file(&mut tar, "opaque/.wh..wh..opq", b"");
        file(&mut tar, "opaque/new", b"x");
        let dir = tempfile::tempdir().unwrap();
        unpack(&done(tar)[..], dir.path()).unwrap();
        let gone = std::fs::metadata(dir.path().join("dir/gone")).unwrap();
        assert!(gone.file_type().is_char_device());
        assert_eq!(gone.rdev(), 0);
        let mut value = [0u8; 8];
        let n = fs::getxattr(dir.path().join("opaque"), "trusted.overlay.opaque", &mut value[..]).unwrap();
        assert_eq!(&value[..n], b"y");
        assert!(!dir.path().join("opaque/.wh..wh..opq").exists());
    }

    #[test]
    fn no_entry_escapes_its_root() {
        let outside = tempfile::tempdir().unwrap();
        let victim = outside.path().join("victim");
        std::fs::write(&victim, "safe").unwrap();
        let out = outside.path().to_str().unwrap();

        let mut dotdot = Tar::new(Vec::new());
        raw(&mut dotdot, EntryType::Regular, "../../evil", b"evil");
        let mut hard = Tar::new(Vec::new());
        link(&mut hard, EntryType::Link, "grab", victim.to_str().unwrap());
        for bytes in [done(dotdot), done(hard)] {
            let root = tempfile::tempdir().unwrap();
            assert!(unpack(&bytes[..], root.path()).is_err());
        }

        // A link out, then a file through it: stays inside the root.
        let mut through = Tar::new(Vec::new());
        link(&mut through, EntryType::Symlink, "door", out);
        raw(&mut through, EntryType::Regular, "door/victim", b"evil");
        let root = tempfile::tempdir().unwrap();
        let _ = unpack(&done(through)[..], root.path());
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "safe");

        // A link in place of a file, then the file: replaced, not followed.
        let mut over = Tar::new(Vec::new());
        link(&mut over, EntryType::Symlink, "file", victim.to_str().unwrap());
        file(&mut over, "file", b"evil");
        let root = tempfile::tempdir().unwrap();
        unpack(&done(over)[..], root.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "safe");
        assert_eq!(std::fs::read_to_string(root.path().join("file")).unwrap(), "evil");
    }

    #[test]
    fn unnamed_parents_look_as_below() {
        let below = tempfile::tempdir().unwrap();
        std::fs::create_dir(below.path().join("tmp")).unwrap();
        std::fs::set_permissions(below.path().join("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
        let mut tar = Tar::new(Vec::new());
        file(&mut tar, "tmp/a", b"");
        let root = tempfile::tempdir().unwrap();
        let unpacked = unpack(&done(tar)[..], root.path()).unwrap();
        inherit_attributes(root.path(), &unpacked.implicit, &[below.path().to_owned()]).unwrap();
        assert_eq!(std::fs::metadata(root.path().join("tmp")).unwrap().permissions().mode() & 0o7777, 0o1777);
    }

    fn extended(tar: &mut Tar, header: &mut tar::Header, path: &str, pairs: &[(&str, &[u8])]) {
        tar.append_pax_extensions(pairs.iter().copied()).unwrap();
        tar.append_data(header, path, &[][..]).unwrap();
    }

    #[test]
    fn owners_set_ids_attributes_and_nodes_survive() {
        let mut tar = Tar::new(Vec::new());
        let pairs: [(&str, &[u8]); 5] = [
            ("uid", b"70000"),
            ("gid", b"70001"),
            ("mtime", b"1600000000.5"),
            ("SCHILY.xattr.user.kept", b"v"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/elsewhere"),
        ];
        extended(&mut tar, &mut header(EntryType::Regular, 0o4755, 0), "su", &pairs);
        let mut pipe = header(EntryType::Fifo, 0o622, 0);
        pipe.set_device_major(0).unwrap();
        pipe.set_device_minor(0).unwrap();
        tar.append_data(&mut pipe, "pipe", &[][..]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        unpack(&done(tar)[..], dir.path()).unwrap();
        let (path, su) = (dir.path().join("su"), std::fs::metadata(dir.path().join("su")).unwrap());
        assert_eq!((su.uid(), su.gid(), su.mode() & 0o7777), (70000, 70001, 0o4755));
        assert_eq!((su.mtime(), su.mtime_nsec()), (1_600_000_000, 500_000_000));
        let mut value = [0u8; 16];
        assert_eq!(fs::getxattr(&path, "user.kept", &mut value[..]), Ok(1));
        let redirect = fs::getxattr(&path, "trusted.overlay.redirect", &mut value[..]);
        assert_eq!(redirect, Err(Errno::NODATA), "an image does not steer overlayfs");
        let pipe = std::fs::metadata(dir.path().join("pipe")).unwrap();
        assert!(pipe.file_type().is_fifo());
        assert_eq!((pipe.uid(), pipe.mode() & 0o7777), (1000, 0o622));
    }

    #[test]
    fn later_entries_replace_earlier_ones() {
        let mut tar = Tar::new(Vec::new());
        file(&mut tar, "was-dir/deep/file", b"x");
        file(&mut tar, "was-dir", b"now a file");
        file(&mut tar, "dir/hidden", b"x");
        file(&mut tar, "dir/.wh.hidden", b"");
        file(&mut tar, "dir/.wh..wh.plnk", b"");
        tar.append_data(&mut header(EntryType::Directory, 0o700, 0), "dir/", &[][..]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let unpacked = unpack(&done(tar)[..], dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("was-dir")).unwrap(), "now a file");
        assert!(std::fs::metadata(dir.path().join("dir/hidden")).unwrap().file_type().is_char_device());
        assert_eq!(std::fs::read_dir(dir.path().join("dir")).unwrap().count(), 1, "marks of aufs are none");
        let named = !unpacked.implicit.contains(&PathBuf::from("dir"));
        assert!(named, "its own entry came late: {:?}", unpacked.implicit);
    }

    #[test]
    fn entries_that_make_no_sense_are_refused() {
        for path in ["a/b/.wh.", "a/b/.wh..", "a/b/.wh..."] {
            let mut tar = Tar::new(Vec::new());
            file(&mut tar, "a/kept", b"x");
            raw(&mut tar, EntryType::Regular, path, b"");
            let dir = tempfile::tempdir().unwrap();
            let result = unpack(&done(tar)[..], dir.path());
            assert!(matches!(result, Err(Error::Invalid(_))), "{path}: {result:?}");
            assert!(dir.path().join("a/kept").exists(), "{path}");
        }
        // An empty frame of zstd that asks for a window of 128 MiB, and one that asks for twice that.
        for (log, taken) in [(27, true), (28, false)] {
            let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3, 1, 0, 0];
            let dir = tempfile::tempdir().unwrap();
            assert_eq!(unpack(&frame[..], dir.path()).is_ok(), taken, "2^{log} bytes");
        }
    }
}
