//! What a process really takes.

use std::fs;

/// Resident memory of this process, bytes; zero where it cannot be read.
pub fn resident() -> u64 {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    read("/proc/self/smaps_rollup")
        .lines()
        .find_map(|line| line.strip_prefix("Rss:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        .unwrap_or(0)
        << 10
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_that_is_touched_is_resident() {
        let before = super::resident();
        assert!(before > 0);
        let taken = vec![1u8; 64 << 20];
        assert!(super::resident() >= before + (48 << 20));
        drop(taken);
    }
}
