//! Counts what this thread asks of the operating system's clock and randomness, by standing in
//! for the C library's functions.

use std::cell::Cell;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    pub clock: u32,
    pub randomness: u32,
}

thread_local! {
    static COUNTING: Cell<bool> = const { Cell::new(false) };
    static READS: Cell<Reads> = const { Cell::new(Reads { clock: 0, randomness: 0 }) };
}

fn count(add: fn(&mut Reads)) {
    // A thread that ends may read the clock after its cells are gone.
    let _ = COUNTING.try_with(|counting| {
        if counting.get() {
            let _ = READS.try_with(|reads| {
                let mut now = reads.get();
                add(&mut now);
                reads.set(now);
            });
        }
    });
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
pub unsafe extern "C" fn getrandom(buffer: *mut libc::c_void, length: libc::size_t, flags: libc::c_uint) -> libc::ssize_t {
    count(|reads| reads.randomness += 1);
    // SAFETY: the caller's arguments go to the kernel as they are.
    unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as libc::ssize_t }
}
