//! No acknowledged write is lost: not when the power fails between any two syncs, with every
//! write since the last sync dropped, kept or torn at will; and not when the process is killed.

use crate::{create, open};
use rusqlite::ffi;
use skeg_base::{Clock, Random};
use skeg_store::{Options, Sqlite, Store, Synchronous};
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// What happened to the files, in order.
#[derive(Clone, Debug)]
enum Op {
    Write {
        file: String,
        offset: usize,
        data: Vec<u8>,
    },
    Truncate {
        file: String,
        size: usize,
    },
    Sync {
        file: String,
    },
    Delete {
        file: String,
    },
    /// A write of this key was acknowledged.
    Ack(String),
}

static LOG: Mutex<Vec<Op>> = Mutex::new(Vec::new());

fn log(op: Op) {
    LOG.lock().unwrap().push(op);
}

/// The file whose syncs fail.
static FAILING: Mutex<Option<String>> = Mutex::new(None);

/// The call, and its file, that lasts as long as a test holds the lock; how many of it began.
static HELD: Mutex<Option<(&str, &str)>> = Mutex::new(None);
static HOLD: Mutex<()> = Mutex::new(());
static HELD_CALLS: AtomicUsize = AtomicUsize::new(0);

/// Whether the call is the held one, after the wait.
fn held(call: &str, file: &str) -> bool {
    let held = *HELD.lock().unwrap() == Some((call, file));
    if held {
        HELD_CALLS.fetch_add(1, Ordering::SeqCst);
        drop(HOLD.lock().unwrap());
    }
    held
}

const VFS: &CStr = c"skeg-recording";

/// A file of the recording VFS; the real VFS's file lies behind it.
#[repr(C)]
struct File {
    base: ffi::sqlite3_file,
    name: *mut String,
}

static METHODS: OnceLock<Methods> = OnceLock::new();

struct Methods(ffi::sqlite3_io_methods);
// SAFETY: the table holds function pointers only and is never written after it is made.
unsafe impl Sync for Methods {}
// SAFETY: as above.
unsafe impl Send for Methods {}

/// The real file behind one of ours.
unsafe fn real(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: SQLite allocated szOsFile bytes: ours, then the real VFS's.
    unsafe { file.cast::<u8>().add(size_of::<File>()).cast() }
}

unsafe fn name(file: *mut ffi::sqlite3_file) -> String {
    // SAFETY: set by `open_file` and freed by `close` only.
    unsafe { (*(*file.cast::<File>()).name).clone() }
}

/// Passes a call on to the real file's method of the same name.
macro_rules! forward {
    ($($method:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {$(
        #[expect(non_snake_case, reason = "named as the table's field")]
        unsafe extern "C" fn $method(file: *mut ffi::sqlite3_file, $($arg: $type),*) -> $result {
            // SAFETY: SQLite calls this with an open file; the real VFS filled in its methods.
            unsafe {
                let real = real(file);
                (*(*real).pMethods).$method.expect("the unix VFS has every method")(real, $($arg),*)
            }
        }
    )*};
}

forward! {
    xRead(buffer: *mut c_void, amount: c_int, offset: i64) -> c_int;
    xFileSize(size: *mut i64) -> c_int;
    xLock(level: c_int) -> c_int;
    xUnlock(level: c_int) -> c_int;
    xCheckReservedLock(out: *mut c_int) -> c_int;
    xFileControl(op: c_int, arg: *mut c_void) -> c_int;
    xSectorSize() -> c_int;
    xDeviceCharacteristics() -> c_int;
    xShmMap(page: c_int, size: c_int, extend: c_int, out: *mut *mut c_void) -> c_int;
    xShmLock(offset: c_int, n: c_int, flags: c_int) -> c_int;
    xShmBarrier() -> ();
    xShmUnmap(delete: c_int) -> c_int;
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite closes each file once; the name came from Box::into_raw.
    unsafe {
        drop(Box::from_raw((*file.cast::<File>()).name));
        let real = real(file);
        (*(*real).pMethods).xClose.expect("has xClose")(real)
    }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    buffer: *const c_void,
    amount: c_int,
    offset: i64,
) -> c_int {
    // SAFETY: SQLite gives a buffer of `amount` bytes.
    unsafe {
        let data = std::slice::from_raw_parts(buffer.cast::<u8>(), amount as usize).to_vec();
        held("write", &name(file));
        log(Op::Write { file: name(file), offset: offset as usize, data });
        let real = real(file);
        (*(*real).pMethods).xWrite.expect("has xWrite")(real, buffer, amount, offset)
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    // SAFETY: as `write`.
    unsafe {
        log(Op::Truncate { file: name(file), size: size as usize });
        let real = real(file);
        (*(*real).pMethods).xTruncate.expect("has xTruncate")(real, size)
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    // SAFETY: as `write`. Nothing is really synced: the recording is the disk.
    let name = unsafe { name(file) };
    if held("sync", &name) {
        return ffi::SQLITE_OK;
    }
    if FAILING.lock().unwrap().as_ref() == Some(&name) {
        println!("sync failed");
        return ffi::SQLITE_IOERR_FSYNC;
    }
    log(Op::Sync { file: name });
    ffi::SQLITE_OK
}

unsafe extern "C" fn open_file(
    _vfs: *mut ffi::sqlite3_vfs,
    path: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: `file` has room for both structures; the real VFS opens the one behind.
    unsafe {
        let real_vfs = find_real();
        let result = (*real_vfs).xOpen.expect("has xOpen")(real_vfs, path, real(file), flags, out_flags);
        let ours = file.cast::<File>();
        if result != ffi::SQLITE_OK {
            (*ours).base.pMethods = std::ptr::null();
            return result;
        }
        (*ours).name = Box::into_raw(Box::new(file_name(path.cast::<c_char>())));
        let real_methods = *(*real(file)).pMethods;
        let methods = METHODS.get_or_init(|| {
            Methods(ffi::sqlite3_io_methods {
                iVersion: 2,
                xClose: Some(close),
                xRead: Some(xRead),
                xWrite: Some(write),
                xTruncate: Some(truncate),
                xSync: Some(sync),
                xFileSize: Some(xFileSize),
                xLock: Some(xLock),
                xUnlock: Some(xUnlock),
                xCheckReservedLock: Some(xCheckReservedLock),
                xFileControl: Some(xFileControl),
                xSectorSize: Some(xSectorSize),
                xDeviceCharacteristics: Some(xDeviceCharacteristics),
                xShmMap: Some(xShmMap),
                xShmLock: Some(xShmLock),
                xShmBarrier: Some(xShmBarrier),
                xShmUnmap: Some(xShmUnmap),
                ..real_methods
            })
        });
        (*ours).base.pMethods = &raw const methods.0;
        ffi::SQLITE_OK
    }
}

unsafe extern "C" fn delete(
    _vfs: *mut ffi::sqlite3_vfs,
    path: *const c_char,
    sync_directory: c_int,
) -> c_int {
    // SAFETY: SQLite gives a C string; the real VFS is asked with itself as the argument.
    unsafe {
        log(Op::Delete { file: file_name(path) });
        let real_vfs = find_real();
        (*real_vfs).xDelete.expect("has xDelete")(real_vfs, path, sync_directory)
    }
}

unsafe fn file_name(path: *const c_char) -> String {
    // SAFETY: the caller passes a C string.
    let path = Path::new(unsafe { CStr::from_ptr(path) }.to_str().unwrap());
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// The unix VFS by its name: the default one may be ours.
unsafe fn find_real() -> *mut ffi::sqlite3_vfs {
    // SAFETY: a lookup by a constant name.
    unsafe { ffi::sqlite3_vfs_find(c"unix".as_ptr()) }
}

fn register_vfs() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: the copy lives for ever; SQLite keeps a pointer to it.
        unsafe {
            ffi::sqlite3_initialize();
            let real = find_real();
            let ours = Box::leak(Box::new(*real));
            ours.zName = VFS.as_ptr();
            ours.szOsFile = (*real).szOsFile + size_of::<File>() as c_int;
            ours.xOpen = Some(open_file);
            ours.xDelete = Some(delete);
            ours.pNext = std::ptr::null_mut();
            assert_eq!(ffi::sqlite3_vfs_register(ours, 0), ffi::SQLITE_OK);
        }
    });
}

/// Writes through the recording VFS, in batches of growing size, and returns what happened.
fn record(synchronous: Synchronous) -> Vec<Op> {
    register_vfs();
    LOG.lock().unwrap().clear();
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = Options {
            synchronous,
            vfs: Some(VFS.to_str().unwrap().to_owned()),
            ..Options::new(directory.path().join("store.db"), Clock::system())
        };
        let store = Sqlite::open(&options).unwrap();
        for batch in 0..30 {
            let writes = (0..=batch % 5).map(|n| {
                let key = format!("/k{batch}-{n}");
                let store = &store;
                async move {
                    store.write(create(&key, &"v".repeat(300 * (n + 1)))).await.unwrap();
                    log(Op::Ack(key));
                }
            });
            futures_util::future::join_all(writes).await;
            if batch % 10 == 9 {
                store.compact(store.revision()).await.unwrap();
            }
        }
        store.close().await;
    });
    LOG.lock().unwrap().clone()
}

type Files = BTreeMap<String, Vec<u8>>;

/// What a power failure leaves of the writes since a file's last sync.
#[derive(Clone, Copy)]
enum Unsynced {
    Dropped,
    /// Of each write nothing, everything or some of its sectors.
    Torn,
}

/// The disk after a power failure that follows `ops`.
fn after_power_failure(ops: &[Op], unsynced: Unsynced, random: &Random) -> Files {
    let mut files = Files::new();
    let mut pending: BTreeMap<&str, Vec<&Op>> = BTreeMap::new();
    for op in ops {
        match op {
            Op::Write { file, .. } | Op::Truncate { file, .. } => pending.entry(file).or_default().push(op),
            Op::Sync { file } => {
                for op in pending.remove(file.as_str()).unwrap_or_default() {
                    perform(&mut files, op, |_| true);
                }
            }
            // Only the rollback journal is deleted, once, at creation.
            Op::Delete { file } => {
                pending.remove(file.as_str());
                files.remove(file);
            }
            Op::Ack(_) => {}
        }
    }
    for op in pending.into_values().flatten() {
        match (unsynced, random.below(3)) {
            (Unsynced::Dropped, _) | (_, 0) => {}
            (_, 1) => perform(&mut files, op, |_| true),
            _ => perform(&mut files, op, |_| random.below(2) == 0),
        }
    }
    files
}

fn perform(files: &mut Files, op: &Op, keep_sector: impl Fn(usize) -> bool) {
    match op {
        Op::Write { file, offset, data } => {
            let content = files.entry(file.clone()).or_default();
            for (n, sector) in data.chunks(512).enumerate() {
                if keep_sector(n) {
                    let at = offset + n * 512;
                    content.resize(content.len().max(at + sector.len()), 0);
                    content[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        Op::Truncate { file, size } => files.entry(file.clone()).or_default().resize(*size, 0),
        Op::Sync { .. } | Op::Delete { .. } | Op::Ack(_) => {}
    }
}

/// How many acknowledged keys are gone, over all points where the power may fail.
fn lost_writes(ops: &[Op], unsynced: Unsynced) -> usize {
    let random = Random::seeded(11);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cuts = (1..=ops.len()).filter(|cut| {
        matches!(ops[cut - 1], Op::Ack(_) | Op::Sync { .. }) || matches!(ops.get(*cut), Some(Op::Sync { .. }))
    });
    let mut lost = 0;
    for cut in cuts {
        let acked: Vec<&str> = ops[..cut]
            .iter()
            .filter_map(|op| if let Op::Ack(key) = op { Some(key.as_str()) } else { None })
            .collect();
        if acked.is_empty() {
            continue;
        }
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in after_power_failure(&ops[..cut], unsynced, &random) {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        lost += runtime.block_on(async {
            // A file torn without a sync may not even open: then everything is lost.
            let options = Options::new(directory.path().join("store.db"), Clock::system());
            let Ok(store) = Sqlite::open(&options) else { return acked.len() };
            let page = store.list("/", None, None, 0).await.unwrap();
            let present: std::collections::BTreeSet<&str> =
                page.records.iter().map(|record| &*record.key).collect();
            acked.iter().filter(|key| !present.contains(**key)).count()
        });
    }
    lost
}

#[test]
fn a_power_failure_at_any_sync_loses_no_acknowledged_write() {
    let ops = record(Synchronous::Full);
    let syncs = ops.iter().filter(|op| matches!(op, Op::Sync { .. })).count();
    assert!(syncs >= 30, "each of 30 batches is synced, saw {syncs}");
    assert_eq!(lost_writes(&ops, Unsynced::Dropped), 0);
    assert_eq!(lost_writes(&ops, Unsynced::Torn), 0);

    // The control: without syncs the same test finds losses, so it can.
    let ops = record(Synchronous::Off);
    assert!(lost_writes(&ops, Unsynced::Dropped) > 0, "the control lost nothing");
}

/// The child of the next test: writes for ever, printing each acknowledged key.
#[test]
fn writer_process() {
    let Some(directory) = std::env::var_os("SKEG_STORE_TEST_DIRECTORY") else { return };
    let first: u64 = std::env::var("SKEG_STORE_TEST_FIRST").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store =
            Sqlite::open(&Options::new(Path::new(&directory).join("store.db"), Clock::system())).unwrap();
        for n in (first..).step_by(4) {
            let (store, keys) = (&store, n..n + 4);
            futures_util::future::join_all(keys.map(|n| async move {
                store.write(create(&format!("/k{n}"), "v")).await.unwrap();
                println!("acked /k{n}");
            }))
            .await;
        }
    });
}

/// A store in a new directory, on the disk whose calls can be held up.
fn on_held_disk() -> (tempfile::TempDir, tokio::runtime::Runtime, Arc<Sqlite>) {
    register_vfs();
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let vfs = Some(VFS.to_str().unwrap().to_owned());
    let path = directory.path().join("store.db");
    let store = Sqlite::open(&Options { vfs, ..Options::new(path, Clock::system()) }).unwrap();
    (directory, runtime, store)
}

/// The child of the next test.
#[test]
fn waiting_process() {
    use std::task::{Context, Waker};
    if std::env::var_os("SKEG_STORE_TEST_WAITING").is_none() {
        return;
    }
    let (_directory, runtime, store) = on_held_disk();
    *HELD.lock().unwrap() = Some(("sync", "store.db-wal"));
    runtime.block_on(store.write(create("/before", "v"))).unwrap();
    let before = HELD_CALLS.load(Ordering::SeqCst);
    let hold = HOLD.lock().unwrap();
    let mut task = Context::from_waker(Waker::noop());
    let mut first = Box::pin(store.write(create("/first", "v")));
    assert!(first.as_mut().poll(&mut task).is_pending());
    while HELD_CALLS.load(Ordering::SeqCst) == before {
        std::thread::yield_now();
    }
    let waiting = (0..200).map(|n| store.write(create(&format!("/k{n}"), "v")));
    let mut waiting = Box::pin(futures_util::future::try_join_all(waiting));
    assert!(waiting.as_mut().poll(&mut task).is_pending());
    drop(hold);
    runtime.block_on(first).unwrap();
    assert_eq!(runtime.block_on(waiting).unwrap().len(), 200);
    println!("syncs: {}", HELD_CALLS.load(Ordering::SeqCst) - before);
}

#[test]
fn writes_that_wait_for_a_sync_share_the_next() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::waiting_process", "--nocapture"])
        .env("SKEG_STORE_TEST_WAITING", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("syncs: 2\n"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// The child of the next test: writes on while a checkpoint waits for the disk.
#[test]
fn checkpointing_process() {
    const BATCHES_MAX: usize = 100;
    if std::env::var_os("SKEG_STORE_TEST_CHECKPOINT").is_none() {
        return;
    }
    let (_directory, runtime, store) = on_held_disk();
    let batch = |name: String| {
        let writes = (0..64).map(|n| store.write(create(&format!("/{name}-{n}"), &"v".repeat(4000))));
        let all = futures_util::future::try_join_all(writes.collect::<Vec<_>>());
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), all).await })
    };
    *HELD.lock().unwrap() = Some(("write", "store.db"));
    let hold = HOLD.lock().unwrap();
    let begun = (0..BATCHES_MAX).any(|n| {
        batch(format!("before{n}")).expect("writes wait for no checkpoint").unwrap();
        HELD_CALLS.load(Ordering::SeqCst) > 0
    });
    assert!(begun, "no checkpoint began");
    for n in 0..5 {
        batch(format!("while{n}")).expect("writes wait for no checkpoint").unwrap();
    }
    println!("acked amid a checkpoint");
    drop(hold);
    runtime.block_on(store.close());
}

#[test]
fn writes_do_not_wait_for_a_checkpoint() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::checkpointing_process", "--nocapture"])
        .env("SKEG_STORE_TEST_CHECKPOINT", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("acked amid a checkpoint"), "{said}{told}");
}

/// The child of the next test: writes until a sync fails, and a while longer if it may.
#[test]
fn failing_process() {
    let Some(file) = std::env::var_os("SKEG_STORE_TEST_FAILING") else { return };
    register_vfs();
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let vfs = Some(VFS.to_str().unwrap().to_owned());
        let path = directory.path().join("store.db");
        let store = Sqlite::open(&Options { vfs, ..Options::new(path, Clock::system()) }).unwrap();
        store.write(create("/before", "v")).await.unwrap();
        println!("acked /before");
        *FAILING.lock().unwrap() = Some(file.into_string().unwrap());
        // Enough for several checkpoints, however late the first one is.
        for batch in 0..2000 {
            let keys = (0..64).map(|n| format!("/k{batch}-{n}"));
            let writes = keys.map(|key| {
                let store = &store;
                async move { store.write(create(&key, &"v".repeat(4000))).await }
            });
            futures_util::future::try_join_all(writes).await.unwrap();
            println!("acked a batch");
        }
        store.close().await;
    });
    println!("went on");
}

#[test]
fn a_sync_that_fails_stops_the_process_and_is_not_tried_again() {
    use std::os::unix::process::ExitStatusExt;
    for (file, may_ack) in [("store.db-wal", false), ("store.db", true)] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::failing_process", "--nocapture"])
            .env("SKEG_STORE_TEST_FAILING", file)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let count = |what: &str| said.matches(what).count();
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{file}: {said}");
        assert_eq!(
            (count("acked /before"), count("sync failed"), count("went on")),
            (1, 1, 0),
            "{file}: {said}"
        );
        // The log's sync comes before the answer, that of the database behind it.
        assert_eq!(count("acked a batch") > 0, may_ack, "{file}: {said}");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("the store's disk failed"), "{file}: {told}");
    }
}

#[test]
fn fifty_kills_under_load_lose_no_acknowledged_write() {
    let directory = tempfile::tempdir().unwrap();
    let random = Random::seeded(5);
    let mut acked = Vec::new();
    for round in 0..50u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::writer_process", "--nocapture"])
            .env("SKEG_STORE_TEST_DIRECTORY", directory.path())
            .env("SKEG_STORE_TEST_FIRST", (round * 100_000).to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let until = random.below(60);
        let mut seen = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            if let Some((_, key)) = line.unwrap().split_once("acked ") {
                acked.push(key.to_owned());
                seen += 1;
                if seen == until + 1 {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(seen > until, "the writer ended by itself in round {round}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = open(&directory);
        for key in &acked {
            assert!(store.get(key).await.unwrap().0.is_some(), "{key} was acknowledged and is gone");
        }
    });
}
