//! The engine on disk: SQLite in WAL mode.
//!
//! One thread owns the writing connection. It takes all writes that wait, up to a bound, runs them
//! in one transaction, commits (one fdatasync of the WAL), publishes the changes to the watches
//! and only then answers. A second thread owns a reading connection, a third moves the WAL into
//! the database in the background. A failed sync is never retried: the kernel may have dropped
//! the dirty pages, so the process stops and reads the truth again at its next start.

use crate::apply::{apply, prefix_end};
use crate::hub::{Hub, WATCH_BACKLOG_MAX};
use crate::{Change, Error, Page, Record, Result, Revision, Store, Watch, WatchItem, Write, Written};
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};
use skeg_base::Clock;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Writes in one transaction at most.
const BATCH_MAX: usize = 512;
/// Requests that wait for the writer or the reader at most; beyond that callers wait.
const QUEUE_MAX: usize = 4096;
/// Pages of WAL (4 KiB each) after which the background checkpoint runs.
const CHECKPOINT_PAGES: u64 = 1000;
/// Pages of WAL after which the writer waits for a checkpoint: the bound of the WAL's growth.
const CHECKPOINT_FORCED_PAGES: u64 = 16_000;
/// What the WAL is long from the start: a sync that need not record a longer file takes half the time.
const WAL_ROOM_BYTES: u64 = 4 << 20;
/// Revisions that one compaction transaction covers, so that writers never wait long.
const COMPACT_STEP: u64 = 2_000;
/// Changes that a resuming watch reads from the log at a time.
const CATCH_UP_PAGE: usize = 1_000;

/// `Full` in production. `Off` exists for the control run of the durability test only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Synchronous {
    #[default]
    Full,
    Off,
}

/// How to open the engine.
#[derive(Clone, Debug)]
pub struct Options {
    /// The database file; `-wal` and `-shm` files lie beside it.
    pub path: PathBuf,
    pub clock: Clock,
    pub synchronous: Synchronous,
    /// The name of a registered SQLite VFS, for fault injection.
    pub vfs: Option<String>,
}

impl Options {
    pub fn new(path: impl Into<PathBuf>, clock: Clock) -> Self {
        Options { path: path.into(), clock, synchronous: Synchronous::Full, vfs: None }
    }
}

enum Request {
    Write(Write, oneshot::Sender<Result<Written>>),
    Watch {
        prefix: String,
        after: Revision,
        sender: mpsc::Sender<WatchItem>,
        done: oneshot::Sender<Result<()>>,
    },
    Compact(Revision, oneshot::Sender<Result<()>>),
    /// Delete what has expired.
    Expire,
    /// Answer, then stop.
    Close(oneshot::Sender<()>),
}

type Read = Box<dyn FnOnce(&Connection) + Send>;

/// The store on disk.
pub struct Sqlite {
    path: PathBuf,
    writer: mpsc::Sender<Request>,
    reader: mpsc::Sender<Read>,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the threads share.
struct Shared {
    revision: AtomicU64,
    compacted: AtomicU64,
    /// Milliseconds since the epoch of the next expiry, `None` for none; and whether to stop.
    alarm: Mutex<Alarm>,
    alarm_changed: Condvar,
    /// Why the last batch of writes failed.
    trouble: watch::Sender<Option<String>>,
}

#[derive(Default)]
struct Alarm {
    next_ms: Option<i64>,
    checkpoint_due: bool,
    stop: bool,
}

impl Sqlite {
    /// Opens or creates the database and starts its threads.
    ///
    /// # Errors
    /// `Failed` when the file cannot be opened, is damaged, or was written by a newer version.
    pub fn open(options: &Options) -> Result<Arc<Self>> {
        let connection = connect(options)?;
        migrate(&connection)?;
        if options.vfs.is_none()
            && let Err(error) = make_room(&wal(&options.path))
        {
            tracing::debug!(%error, "cannot lengthen the WAL ahead");
        }
        let compacted: u64 = meta(&connection, "compacted")?;
        let newest: u64 = connection
            .query_row("SELECT COALESCE(MAX(rev), 0) FROM log", [], |row| row.get(0))
            .map_err(refused)?;
        let shared = Arc::new(Shared {
            revision: AtomicU64::new(newest.max(compacted).max(1)),
            compacted: AtomicU64::new(compacted),
            alarm: Mutex::default(),
            alarm_changed: Condvar::new(),
            trouble: watch::Sender::default(),
        });
        let (write_sender, write_receiver) = mpsc::channel(QUEUE_MAX);
        let (read_sender, mut read_receiver) = mpsc::channel::<Read>(QUEUE_MAX);

        let writer = Writer {
            connection,
            shared: shared.clone(),
            hub: Hub::default(),
            clock: options.clock,
            wal_pages: 0,
            unmoved_pages: 0,
        };
        let reading = connect(options)?;
        let alarm_shared = shared.clone();
        let alarm_sender = write_sender.downgrade();
        let checkpointing = connect(options)?;
        let clock = options.clock;
        let threads = vec![
            spawn("skeg-store-write", move || writer.run(write_receiver))?,
            spawn("skeg-store-read", move || {
                while let Some(read) = read_receiver.blocking_recv() {
                    read(&reading);
                }
            })?,
            spawn("skeg-store-tend", move || tend(&alarm_shared, &alarm_sender, &checkpointing, clock))?,
        ];
        Ok(Arc::new(Sqlite {
            path: options.path.clone(),
            writer: write_sender,
            reader: read_sender,
            shared,
            threads: Mutex::new(threads),
        }))
    }

    /// Finishes the writes that wait, moves the WAL into the database and stops the threads.
    pub async fn close(&self) {
        let (done, wait) = oneshot::channel();
        if self.writer.send(Request::Close(done)).await.is_ok() {
            let _ = wait.await;
        }
        self.stop_tending();
    }

    fn stop_tending(&self) {
        self.shared.alarm.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.shared.alarm_changed.notify_all();
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (done, wait) = oneshot::channel();
        let request: Read = Box::new(move |connection| {
            let _ = done.send(read(connection));
        });
        self.reader.send(request).await.map_err(|_| Error::Closed)?;
        wait.await.map_err(|_| Error::Closed)?
    }

    async fn register(&self, prefix: &str, after: Revision, sender: mpsc::Sender<WatchItem>) -> Result<()> {
        let (done, wait) = oneshot::channel();
        let request = Request::Watch { prefix: prefix.to_owned(), after, sender, done };
        self.writer.send(request).await.map_err(|_| Error::Closed)?;
        wait.await.map_err(|_| Error::Closed)?
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.stop_tending();
        // The writer and reader end when their channels close; waiting makes a reopen safe.
        let (writer, _) = mpsc::channel(1);
        self.writer = writer;
        let (reader, _) = mpsc::channel(1);
        self.reader = reader;
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = thread.join();
        }
    }
}

impl Store for Sqlite {
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Written>> {
        async move {
            let (done, wait) = oneshot::channel();
            self.writer.send(Request::Write(write, done)).await.map_err(|_| Error::Closed)?;
            wait.await.map_err(|_| Error::OutcomeUnknown("the store stopped during the write".into()))?
        }
        .boxed()
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<Record>, Revision)>> {
        let key = key.to_owned();
        async move {
            let revision = self.revision();
            let record = self.read(move |connection| newest(connection, &key)).await?;
            Ok((record.clone(), record.map_or(revision, |record| record.modified.max(revision))))
        }
        .boxed()
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        at: Option<Revision>,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Page>> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        let newest = self.revision();
        let shared = self.shared.clone();
        self.read(move |connection| {
            let revision = at.unwrap_or(newest);
            if revision > newest {
                return Err(Error::Future { asked: revision, newest });
            }
            let page = list(connection, &prefix, revision, after.as_deref(), limit)?;
            // Checked after the read: a compaction meanwhile may have taken rows from under it.
            let oldest = Revision(shared.compacted.load(Ordering::Acquire));
            if revision < oldest { Err(Error::Compacted { oldest }) } else { Ok(page) }
        })
        .boxed()
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> BoxFuture<'a, Result<Watch>> {
        async move {
            let newest = self.revision();
            if after > newest {
                return Err(Error::Future { asked: after, newest });
            }
            let oldest = Revision(self.shared.compacted.load(Ordering::Acquire));
            if after < oldest {
                return Err(Error::Compacted { oldest });
            }
            let (sender, receiver) = mpsc::channel(WATCH_BACKLOG_MAX);
            // What is missed is read page by page on the reading connection; the writer then only
            // fills in what was written meanwhile.
            let mut position = after;
            let mut backlog = Vec::new();
            while newest.0 - position.0 > CATCH_UP_PAGE as u64 {
                let wanted = prefix.to_owned();
                let (changes, next) = self
                    .read(move |connection| changes_after(connection, &wanted, position, CATCH_UP_PAGE))
                    .await?;
                backlog.push(changes);
                if backlog.len() >= WATCH_BACKLOG_MAX / 2 {
                    return Err(Error::Compacted { oldest: newest });
                }
                if next >= newest {
                    position = next;
                    break;
                }
                position = next;
            }
            for changes in backlog.into_iter().filter(|changes| !changes.is_empty()) {
                sender.try_send(WatchItem::Changes(changes.into())).map_err(|_| Error::Closed)?;
            }
            self.register(prefix, position, sender).await?;
            Ok(receiver)
        }
        .boxed()
    }

    fn revision(&self) -> Revision {
        Revision(self.shared.revision.load(Ordering::Acquire))
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<()>> {
        async move {
            let target = revision.min(self.revision());
            loop {
                let compacted = self.shared.compacted.load(Ordering::Acquire);
                if compacted >= target.0 {
                    return Ok(());
                }
                let step = Revision(target.0.min(compacted + COMPACT_STEP));
                let (done, wait) = oneshot::channel();
                self.writer.send(Request::Compact(step, done)).await.map_err(|_| Error::Closed)?;
                wait.await.map_err(|_| Error::Closed)??;
            }
        }
        .boxed()
    }

    fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.shared.trouble.subscribe()
    }

    fn size_bytes(&self) -> u64 {
        [self.path.as_path(), &wal(&self.path)]
            .iter()
            .filter_map(|p| std::fs::metadata(p).ok())
            .map(|m| m.len())
            .sum()
    }
}

fn wal(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-wal");
    path.into()
}

/// Lengthens the WAL with zeros, which are no frames.
fn make_room(wal: &Path) -> std::io::Result<()> {
    let file = std::fs::OpenOptions::new().write(true).open(wal)?;
    let length = file.metadata()?.len();
    if length < WAL_ROOM_BYTES {
        file.write_all_at(&vec![0; (WAL_ROOM_BYTES - length) as usize], length)?;
        file.sync_data()?;
    }
    Ok(())
}

struct Writer {
    connection: Connection,
    shared: Arc<Shared>,
    hub: Hub,
    clock: Clock,
    /// Pages appended to the WAL since its last restart, about.
    wal_pages: u64,
    /// The same since the background checkpoint was last asked for.
    unmoved_pages: u64,
}

impl Writer {
    fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut batch = Vec::new();
        self.arm_expiry();
        while requests.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
            let mut writes = Vec::with_capacity(batch.len());
            for request in batch.drain(..) {
                // Everything but a write acts between batches, in the order of arrival.
                if let Request::Write(write, done) = request {
                    writes.push((write, done));
                    continue;
                }
                self.commit(&mut writes);
                match request {
                    Request::Write(..) => {}
                    Request::Watch { prefix, after, sender, done } => {
                        let _ = done.send(self.watch(&prefix, after, sender));
                    }
                    Request::Compact(revision, done) => {
                        let _ = done.send(self.compact(revision));
                    }
                    Request::Expire => self.expire(),
                    Request::Close(done) => {
                        checkpoint(&self.connection, "TRUNCATE");
                        let _ = done.send(());
                        return;
                    }
                }
            }
            self.commit(&mut writes);
        }
    }

    /// Runs the writes in one transaction; answers each when all are durable.
    fn commit(&mut self, writes: &mut Vec<(Write, oneshot::Sender<Result<Written>>)>) {
        if writes.is_empty() {
            return;
        }
        let outcome = self.try_commit(writes.iter().map(|(write, _)| write));
        let trouble = outcome.as_ref().err().map(ToString::to_string);
        self.shared.trouble.send_if_modified(|known| {
            let changed = *known != trouble;
            *known = trouble;
            changed
        });
        match outcome {
            Ok((results, changes)) => {
                self.publish(changes);
                for ((_, done), result) in writes.drain(..).zip(results) {
                    let _ = done.send(result);
                }
            }
            Err(error) => {
                for (_, done) in writes.drain(..) {
                    let _ = done.send(Err(error.clone()));
                }
            }
        }
        self.checkpoint_if_due();
    }

    fn try_commit<'a>(
        &mut self,
        writes: impl Iterator<Item = &'a Write>,
    ) -> Result<(Vec<Result<Written>>, Vec<Change>)> {
        let now_ms = self.clock.now().as_millisecond();
        let mut revision = self.shared.revision.load(Ordering::Acquire);
        let transaction = self.connection.transaction().map_err(failed)?;
        let mut results = Vec::new();
        let mut changes = Vec::new();
        let mut next_expiry = None;
        {
            let mut insert = transaction
                .prepare_cached(
                    "INSERT INTO log (rev, key, created, prev, expires, value) VALUES (?1,?2,?3,?4,?5,?6)",
                )
                .map_err(failed)?;
            for write in writes {
                let current = newest(&transaction, &write.key)?;
                match apply(write, current, Revision(revision + 1)) {
                    Err(error) => results.push(Err(error)),
                    Ok(change) => {
                        revision += 1;
                        let expires = write
                            .ttl
                            .map(|ttl| now_ms + i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX / 2));
                        next_expiry = [next_expiry, expires].into_iter().flatten().min();
                        let previous = change.previous.as_ref().map_or(0, |record| record.modified.0);
                        insert
                            .execute(params![
                                revision,
                                &*change.key,
                                change.created.0,
                                previous,
                                expires,
                                change.value.as_deref()
                            ])
                            .map_err(failed)?;
                        results.push(Ok(Written {
                            revision: change.revision,
                            previous: change.previous.clone(),
                        }));
                        changes.push(change);
                    }
                }
            }
        }
        if changes.is_empty() {
            return Ok((results, changes));
        }
        transaction.commit().map_err(failed)?;
        self.count_pages(changes.len() as u64 * 2 + 2);
        self.shared.revision.store(revision, Ordering::Release);
        if next_expiry.is_some() {
            self.set_alarm(next_expiry);
        }
        Ok((results, changes))
    }

    fn publish(&mut self, changes: Vec<Change>) {
        if let Some(last) = changes.last() {
            let newest = last.revision;
            self.hub.publish(&changes.into(), newest);
        }
    }

    fn watch(&mut self, prefix: &str, after: Revision, sender: mpsc::Sender<WatchItem>) -> Result<()> {
        let oldest = Revision(self.shared.compacted.load(Ordering::Acquire));
        if after < oldest {
            return Err(Error::Compacted { oldest });
        }
        let (missed, _) = changes_after(&self.connection, prefix, after, usize::MAX)?;
        if !missed.is_empty() {
            sender.try_send(WatchItem::Changes(missed.into())).map_err(|_| Error::Closed)?;
        }
        self.hub.add(prefix, sender);
        Ok(())
    }

    /// Forgets what was superseded or deleted at or before `revision`. Each row names the row it
    /// replaced, so only the rows since the last compaction are looked at.
    fn compact(&mut self, revision: Revision) -> Result<()> {
        let compacted = self.shared.compacted.load(Ordering::Acquire);
        if revision.0 <= compacted {
            return Ok(());
        }
        let transaction = self.connection.transaction().map_err(failed)?;
        transaction
            .execute(
                "DELETE FROM log WHERE rev IN (SELECT prev FROM log WHERE rev > ?1 AND rev <= ?2 AND prev <> 0)",
                [compacted, revision.0],
            )
            .map_err(failed)?;
        transaction
            .execute(
                "DELETE FROM log WHERE rev > ?1 AND rev <= ?2 AND value IS NULL",
                [compacted, revision.0],
            )
            .map_err(failed)?;
        transaction
            .execute("UPDATE meta SET value = ?1 WHERE name = 'compacted'", [revision.0])
            .map_err(failed)?;
        // Readers check this after their read, so it must be visible before the rows are gone.
        self.shared.compacted.store(revision.0, Ordering::Release);
        transaction.commit().map_err(failed)?;
        self.count_pages(64);
        self.checkpoint_if_due();
        Ok(())
    }

    fn expire(&mut self) {
        let now_ms = self.clock.now().as_millisecond();
        let due: Result<Vec<Write>> = (|| {
            let mut query = self
                .connection
                .prepare_cached(
                    "SELECT key, rev FROM log WHERE expires <= ?1 AND value IS NOT NULL AND NOT EXISTS
                     (SELECT 1 FROM log newer WHERE newer.key = log.key AND newer.rev > log.rev) LIMIT ?2",
                )
                .map_err(failed)?;
            let rows = query
                .query_map(params![now_ms, BATCH_MAX as u64], |row| {
                    Ok(Write {
                        key: row.get::<_, String>(0)?.into(),
                        expect: crate::Expect::Modified(Revision(row.get(1)?)),
                        value: None,
                        ttl: None,
                    })
                })
                .map_err(failed)?;
            rows.collect::<rusqlite::Result<_>>().map_err(failed)
        })();
        if let Ok(due) = due
            && let Ok((_, changes)) = self.try_commit(due.iter())
        {
            self.publish(changes);
        }
        self.arm_expiry();
    }

    /// Sets the alarm to the earliest expiry in the log.
    fn arm_expiry(&mut self) {
        let next = self.connection.query_row(
            "SELECT MIN(expires) FROM log WHERE expires IS NOT NULL AND value IS NOT NULL AND NOT EXISTS
             (SELECT 1 FROM log newer WHERE newer.key = log.key AND newer.rev > log.rev)",
            [],
            |row| row.get::<_, Option<i64>>(0),
        );
        self.set_alarm(next.ok().flatten());
    }

    fn set_alarm(&self, next_ms: Option<i64>) {
        let mut alarm = self.shared.alarm.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(next) = next_ms
            && alarm.next_ms.is_none_or(|current| next < current)
        {
            alarm.next_ms = Some(next);
            self.shared.alarm_changed.notify_all();
        }
    }

    fn count_pages(&mut self, pages: u64) {
        self.wal_pages += pages;
        self.unmoved_pages += pages;
    }

    fn checkpoint_if_due(&mut self) {
        if self.wal_pages >= CHECKPOINT_FORCED_PAGES {
            // RESTART waits for the background checkpoint and for readers, then the WAL is
            // written from its start again.
            checkpoint(&self.connection, "RESTART");
            self.wal_pages = 0;
            self.unmoved_pages = 0;
        } else if self.unmoved_pages >= CHECKPOINT_PAGES {
            self.unmoved_pages = 0;
            let mut alarm = self.shared.alarm.lock().unwrap_or_else(PoisonError::into_inner);
            alarm.checkpoint_due = true;
            self.shared.alarm_changed.notify_all();
        }
    }
}

/// The tending thread: wakes the writer for expiries and moves the WAL into the database.
fn tend(shared: &Shared, writer: &mpsc::WeakSender<Request>, connection: &Connection, clock: Clock) {
    let mut alarm = shared.alarm.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if alarm.stop {
            return;
        }
        if std::mem::take(&mut alarm.checkpoint_due) {
            drop(alarm);
            checkpoint(connection, "PASSIVE");
            alarm = shared.alarm.lock().unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        let wait = alarm.next_ms.map(|next| next - clock.now().as_millisecond());
        match wait {
            Some(ms) if ms <= 0 => {
                alarm.next_ms = None;
                drop(alarm);
                match writer.upgrade() {
                    Some(writer) => {
                        let _ = writer.blocking_send(Request::Expire);
                    }
                    None => return,
                }
                alarm = shared.alarm.lock().unwrap_or_else(PoisonError::into_inner);
            }
            Some(ms) => {
                let timeout = Duration::from_millis(ms.unsigned_abs());
                alarm = shared
                    .alarm_changed
                    .wait_timeout(alarm, timeout)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            None => alarm = shared.alarm_changed.wait(alarm).unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// Moves the WAL into the database, as far as `mode` insists on it. What readers hold up is moved
/// by the next one; a sync that failed ends the process, as everywhere.
fn checkpoint(connection: &Connection, mode: &str) {
    let moved = connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()));
    if let Err(error) = moved.map_err(failed) {
        tracing::warn!(%error, "a checkpoint failed; the next one tries again");
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.into())
        .stack_size(512 * 1024)
        .spawn(run)
        .map_err(|error| Error::Failed(format!("cannot start thread {name}: {error}")))
}

fn connect(options: &Options) -> Result<Connection> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE
        | rusqlite::OpenFlags::SQLITE_OPEN_CREATE
        | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = match &options.vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(&options.path, flags, vfs.as_str()),
        None => Connection::open_with_flags(&options.path, flags),
    }
    .map_err(|error| Error::Failed(format!("cannot open {}: {error}", options.path.display())))?;
    set_up(&connection, options.synchronous)?;
    Ok(connection)
}

fn set_up(connection: &Connection, synchronous: Synchronous) -> Result<()> {
    let synchronous = match synchronous {
        Synchronous::Full => "FULL",
        Synchronous::Off => "OFF",
    };
    connection.busy_timeout(Duration::from_secs(10)).map_err(refused)?;
    // Plans do not depend on what is bound: statements are not prepared again when that changes.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(refused)?;
    connection
        .execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous}; PRAGMA secure_delete = ON;
             PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -2000; PRAGMA temp_store = MEMORY;
             PRAGMA mmap_size = 0;"
        ))
        .map_err(refused)
}

/// The version of the tables below. A higher one on disk is refused.
const FORMAT: u64 = 1;

fn migrate(connection: &Connection) -> Result<()> {
    let found: u64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(refused)?;
    if found > FORMAT {
        return Err(Error::Failed(format!(
            "the database has format {found}, this version reads up to {FORMAT}: start the newer Skeg that wrote it"
        )));
    }
    if found < FORMAT {
        connection
            .execute_batch(&format!(
                "BEGIN IMMEDIATE;
                 CREATE TABLE log (
                   rev INTEGER PRIMARY KEY,   -- the one global order
                   key TEXT NOT NULL,
                   created INTEGER NOT NULL,  -- rev of this incarnation's first row
                   prev INTEGER NOT NULL,     -- rev of the row this one replaced, 0 for none
                   expires INTEGER,           -- ms since the epoch
                   value BLOB                 -- NULL: deleted
                 ) STRICT;
                 CREATE UNIQUE INDEX log_key ON log (key, rev);
                 CREATE INDEX log_expires ON log (expires) WHERE expires IS NOT NULL;
                 CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
                 INSERT INTO meta VALUES ('compacted', 0);
                 PRAGMA user_version = {FORMAT};
                 COMMIT;"
            ))
            .map_err(refused)?;
    }
    Ok(())
}

fn meta(connection: &Connection, name: &str) -> Result<u64> {
    connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0)).map_err(refused)
}

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let value: Vec<u8> = row.get(3)?;
    Ok(Record {
        key: row.get::<_, String>(0)?.into(),
        modified: Revision(row.get(1)?),
        created: Revision(row.get(2)?),
        value: Bytes::from(value),
    })
}

/// The key's record now, `None` where it does not exist.
fn newest(connection: &Connection, key: &str) -> Result<Option<Record>> {
    let mut query = connection
        .prepare_cached("SELECT key, rev, created, value FROM log WHERE key = ?1 ORDER BY rev DESC LIMIT 1")
        .map_err(failed)?;
    query
        .query_row([key], |row| {
            if row.get_ref(3)?.as_blob_or_null()?.is_none() { Ok(None) } else { record(row).map(Some) }
        })
        .optional()
        .map(Option::flatten)
        .map_err(failed)
}

fn list(
    connection: &Connection,
    prefix: &str,
    at: Revision,
    after: Option<&str>,
    limit: usize,
) -> Result<Page> {
    let start = after.filter(|after| *after >= prefix);
    let end = prefix_end(prefix).unwrap_or_else(|| "\u{10ffff}".into());
    let matching = "FROM log WHERE key >= ?1 AND key > ?2 AND key < ?3 AND rev <= ?4 AND value IS NOT NULL AND NOT EXISTS
         (SELECT 1 FROM log newer WHERE newer.key = log.key AND newer.rev > log.rev AND newer.rev <= ?4)";
    let mut query = connection
        .prepare_cached(&format!("SELECT key, rev, created, value {matching} ORDER BY key LIMIT ?5"))
        .map_err(failed)?;
    let limit_sql = if limit == 0 { -1 } else { i64::try_from(limit).unwrap_or(-1) };
    let rows = query
        .query_map(params![prefix, start.unwrap_or(""), end, at.0, limit_sql], record)
        .map_err(failed)?;
    let records = rows.collect::<rusqlite::Result<Vec<_>>>().map_err(failed)?;
    let mut remaining = 0;
    if limit > 0
        && records.len() == limit
        && let Some(last) = records.last()
    {
        remaining = connection
            .prepare_cached(&format!("SELECT COUNT(*) {matching}"))
            .and_then(|mut query| query.query_row(params![prefix, &*last.key, end, at.0], |row| row.get(0)))
            .map_err(failed)?;
    }
    Ok(Page { records, revision: at, remaining })
}

/// Up to `limit` changes after a revision, and the revision that this covers.
fn changes_after(
    connection: &Connection,
    prefix: &str,
    after: Revision,
    limit: usize,
) -> Result<(Vec<Change>, Revision)> {
    let mut query = connection
        .prepare_cached(
            "SELECT log.rev, log.key, log.value, log.created, old.rev, old.created, old.value
             FROM log LEFT JOIN log AS old ON old.rev = log.prev WHERE log.rev > ?1 ORDER BY log.rev LIMIT ?2",
        )
        .map_err(failed)?;
    let mut covered = after;
    let mut changes = Vec::new();
    let mut rows = query.query(params![after.0, i64::try_from(limit).unwrap_or(-1)]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let change = change(row).map_err(failed)?;
        covered = change.revision;
        if change.key.starts_with(prefix) {
            changes.push(change);
        }
    }
    Ok((changes, covered))
}

fn change(row: &Row<'_>) -> rusqlite::Result<Change> {
    let key: Arc<str> = row.get::<_, String>(1)?.into();
    let previous = match (row.get::<_, Option<u64>>(4)?, row.get::<_, Option<Vec<u8>>>(6)?) {
        (Some(modified), Some(value)) => Some(Record {
            key: key.clone(),
            value: Bytes::from(value),
            created: Revision(row.get(5)?),
            modified: Revision(modified),
        }),
        _ => None,
    };
    Ok(Change {
        revision: Revision(row.get(0)?),
        key,
        value: row.get::<_, Option<Vec<u8>>>(2)?.map(Bytes::from),
        created: Revision(row.get(3)?),
        previous,
    })
}

/// An error at opening: nothing is acknowledged yet, so it is the caller's to report.
#[expect(clippy::needless_pass_by_value, reason = "shape of map_err")]
fn refused(error: rusqlite::Error) -> Error {
    Error::Failed(error.to_string())
}

/// An error while running. After a failed sync or with a damaged file the process must not go on:
/// what the disk holds is unknown until it is read again. A write that fails otherwise is undone.
#[expect(clippy::needless_pass_by_value, reason = "shape of map_err")]
fn failed(error: rusqlite::Error) -> Error {
    if let Some(code) = error.sqlite_error() {
        let fatal = matches!(
            code.extended_code,
            rusqlite::ffi::SQLITE_IOERR_FSYNC | rusqlite::ffi::SQLITE_IOERR_DIR_FSYNC
        ) || code.code == ErrorCode::DatabaseCorrupt;
        if fatal {
            tracing::error!(%error, "the store's disk failed; stopping so that nothing false is acknowledged");
            eprintln!(
                "skeg: the store's disk failed ({error}); stopping so that nothing false is acknowledged"
            );
            std::process::abort();
        }
    }
    Error::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::StatementStatus;

    #[test]
    fn statements_are_prepared_once() {
        let connection = Connection::open_in_memory().unwrap();
        set_up(&connection, Synchronous::Full).unwrap();
        migrate(&connection).unwrap();
        let mut query =
            connection.prepare("SELECT rev FROM log WHERE rev > ?1 ORDER BY rev LIMIT ?2").unwrap();
        for n in 0..10 {
            assert!(query.query([n, n + 1]).unwrap().next().unwrap().is_none());
        }
        assert_eq!(query.get_status(StatementStatus::RePrepare), 0);
    }
}
