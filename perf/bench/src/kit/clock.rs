//! Processor time: on a shared machine, what others take does not count in it.
#![allow(unsafe_code)]

/// Processor time that the calling thread has used, seconds.
pub fn thread_cpu() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec where it is told to.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Time of the system's monotonic clock, microseconds: the same in every process of this machine.
pub fn machine_us() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec where it is told to.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

/// Lets sleeps of the calling thread end when they are due instead of up to 50 us later.
pub fn sleep_exactly() {
    // SAFETY: sets a number in the calling thread.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}

#[cfg(test)]
mod tests {
    #[test]
    fn sleeping_costs_nothing() {
        let before = super::thread_cpu();
        std::thread::sleep(std::time::Duration::from_millis(30));
        let after = super::thread_cpu();
        assert!(after >= before && after - before < 0.02);
    }
}
