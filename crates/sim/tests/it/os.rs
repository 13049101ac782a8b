//! Counts what a run asks of the operating system's clock and randomness on this thread, by
//! standing in for the C library's functions. The runtime's own bookkeeping, which no task can
//! see, is told apart by its stack and left out.

use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    pub clock: u32,
    pub randomness: u32,
}

/// The runtime measures how busy it is, and notes when its paused clock began.
const RUNTIME: [&str; 2] = ["tokio::runtime::metrics::batch::", "tokio::time::clock::Clock::new"];
/// Return addresses that tell one way to a read from another.
const FRAMES: usize = 24;

thread_local! {
    static COUNTING: Cell<bool> = const { Cell::new(false) };
    static READS: Cell<Reads> = const { Cell::new(Reads { clock: 0, randomness: 0 }) };
    /// Whether the runtime itself read, by the way to the read: names are looked up once.
    static WAYS: RefCell<BTreeMap<[usize; FRAMES], bool>> = const { RefCell::new(BTreeMap::new()) };
}

fn count(add: fn(&mut Reads)) {
    // A thread that ends may read the clock after its cells are gone.
    if !COUNTING.try_with(|counting| counting.replace(false)).unwrap_or(false) {
        return;
    }
    if !is_of_runtime() {
        let mut reads = READS.get();
        add(&mut reads);
        READS.set(reads);
    }
    COUNTING.set(true);
}

fn is_of_runtime() -> bool {
    let mut way = [std::ptr::null_mut(); FRAMES];
    // SAFETY: the buffer has as many places as is said.
    unsafe { libc::backtrace(way.as_mut_ptr(), FRAMES as libc::c_int) };
    let known = |ways: &RefCell<BTreeMap<_, _>>| {
        *ways.borrow_mut().entry(way.map(|address| address.addr())).or_insert_with(|| {
            let stack = Backtrace::force_capture().to_string();
            let runtime = RUNTIME.iter().any(|name| stack.contains(name));
            if !runtime {
                println!("read at {stack}");
            }
            runtime
        })
    };
    WAYS.with(known)
}

/// What `run` reads on this thread.
pub fn reads_during(run: impl FnOnce()) -> Reads {
    READS.set(Reads::default());
    COUNTING.set(true);
    run();
    COUNTING.set(false);
    READS.get()
}

/// # Safety
/// As clock_gettime(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    count(|reads| reads.clock += 1);
    // SAFETY: the caller's arguments go to the kernel as they are.
    unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as libc::c_int }
}

/// # Safety
/// As getrandom(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(
    buffer: *mut libc::c_void,
    length: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    count(|reads| reads.randomness += 1);
    // SAFETY: the caller's arguments go to the kernel as they are.
    unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as libc::ssize_t }
}
