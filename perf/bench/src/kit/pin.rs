//! Threads on fixed cores.
#![allow(unsafe_code)]

use std::mem;

/// Cores this process may use, in ascending order.
pub fn cores() -> Vec<usize> {
    // SAFETY: an all-zero set is a valid value; the call writes no more than the size it is given.
    let set = unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return Vec::new();
        }
        set
    };
    // SAFETY: `core` is below the capacity of the set.
    (0..libc::CPU_SETSIZE as usize).filter(|core| unsafe { libc::CPU_ISSET(*core, &set) }).collect()
}

/// Pins the calling thread to the `n`-th of `cores` (counted round). Where pinning is forbidden the thread stays
/// free, which costs precision only.
pub fn pin(cores: &[usize], n: usize) {
    if cores.is_empty() {
        return;
    }
    let core = cores[n % cores.len()];
    // SAFETY: an all-zero set is a valid value; `core` came out of such a set, so it is below its capacity.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}
