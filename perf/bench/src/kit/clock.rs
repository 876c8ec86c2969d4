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
    machine_ns() / 1_000
}

/// The same in nanoseconds.
pub fn machine_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec where it is told to.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Processor time that all threads of another process have used, also of those that have ended, seconds; `None` when
/// it has ended itself.
pub fn process_cpu(pid: u32) -> Option<f64> {
    let pid = libc::pid_t::try_from(pid).ok()?;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut clock: libc::clockid_t = 0;
    // SAFETY: both calls write one plain value where they are told to.
    let read = unsafe {
        libc::clock_getcpuclockid(pid, &mut clock) == 0 && libc::clock_gettime(clock, &mut time) == 0
    };
    read.then_some(time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9)
}

/// Lets sleeps of the calling thread end when they are due instead of up to 50 us later.
pub fn sleep_exactly() {
    // SAFETY: sets a number in the calling thread.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_is_charged_for_what_its_threads_do() {
        let own = std::process::id();
        let before = super::process_cpu(own).unwrap();
        let spin = || {
            let start = super::thread_cpu();
            while super::thread_cpu() < start + 0.03 {}
        };
        std::thread::spawn(spin).join().unwrap();
        assert!(super::process_cpu(own).unwrap() >= before + 0.03);
        assert_eq!(super::process_cpu(u32::MAX), None);
    }

    #[test]
    fn sleeping_costs_nothing() {
        let before = super::thread_cpu();
        std::thread::sleep(std::time::Duration::from_millis(30));
        let after = super::thread_cpu();
        assert!(after >= before && after - before < 0.02);
    }
}
