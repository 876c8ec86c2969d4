//! The `fairlead` binary: one program, a subcommand for each part.

mod cli;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Settings of the allocator. Its caches per thread hold as many buffers as there are requests under way on a shard, so
/// that buffers do not go back and forth between thread and arena; at most some megabytes per thread.
#[expect(
    unsafe_code,
    reason = "jemalloc reads a symbol of this name at its start; nothing else in the process has it"
)]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: &u8 =
    &b"tcache_nslots_large:200,tcache_nslots_small_min:64,tcache_gc_incr_bytes:1048576\0"[0];

fn main() -> ExitCode {
    cli::run()
}
