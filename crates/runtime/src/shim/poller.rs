//! Descriptors that the supervisor waits for, and what each stands for.

use crate::sys;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What became ready.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Listener,
    Children,
    Connection,
    /// A container's child has something to tell.
    Notes(String),
    /// An exec's child, by its connection.
    ExecNotes(u64),
    Output(String, usize),
    /// A container takes input again.
    Stdin(String),
    /// Input of an attach session, by its connection.
    AttachIn(u64),
    /// An attach session takes output again.
    AttachOut(u64, usize),
}

/// Ready descriptors by token.
pub(super) struct Poller {
    pub(super) epoll: OwnedFd,
    pub(super) sources: BTreeMap<u64, Source>,
    pub(super) next: u64,
}

impl Poller {
    pub(super) fn new() -> io::Result<Poller> {
        // SAFETY: a new descriptor that nobody else owns.
        let epoll = unsafe { OwnedFd::from_raw_fd(sys::check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        Ok(Poller { epoll, sources: BTreeMap::new(), next: 1 })
    }

    pub(super) fn control(
        &self,
        action: libc::c_int,
        fd: &impl AsRawFd,
        events: i32,
        token: u64,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: the event is valid for the call.
        sys::check(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), action, fd.as_raw_fd(), &mut event) })
            .map(drop)
    }

    pub(super) fn add(&mut self, fd: &impl AsRawFd, events: i32, source: Source) -> io::Result<u64> {
        let token = self.next;
        self.next += 1;
        self.control(libc::EPOLL_CTL_ADD, fd, events, token)?;
        self.sources.insert(token, source);
        Ok(token)
    }

    /// Changes what is waited for; 0 pauses. A hang-up is always told, so a pause of a closed
    /// stream must remove it instead.
    pub(super) fn change(&self, fd: &impl AsRawFd, events: i32, token: u64) {
        let _ = self.control(libc::EPOLL_CTL_MOD, fd, events, token);
    }

    pub(super) fn remove(&mut self, fd: &impl AsRawFd, token: u64) {
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0, token);
        self.sources.remove(&token);
    }

    /// Waits; returns tokens and what happened to them.
    pub(super) fn wait(&self) -> Vec<(u64, u32)> {
        const EVENTS_MAX: usize = 16;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        // SAFETY: room for EVENTS_MAX events.
        let n =
            unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), EVENTS_MAX as i32, -1) };
        events.iter().take(n.max(0) as usize).map(|e| (e.u64, e.events)).collect()
    }
}
