//! Processor time: on a shared machine, what others take does not count in it.
#![allow(unsafe_code)]

/// Processor time that the calling thread has used, seconds.
pub fn thread_cpu() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec where it is told to.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
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
