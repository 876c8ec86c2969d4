//! Decisions allocate nothing once a shard has warmed up, whatever the policy.
#![allow(unsafe_code)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use fairlead_routing::{LabelFilter, PlanRequest, Rng, Scratch, plan};
use support::{World, entry, figures, path, request, strategies};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches only a thread-local cell
// without a destructor and without an allocation of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the pointer came from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(run: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    run();
    COUNT.get() - before
}

#[test]
fn decisions_allocate_nothing() {
    let labels = LabelFilter::parse("tier in (gold,silver),zone!=b").unwrap();
    let mut rng = Rng::new(3);
    let prompts: Vec<_> = (0..32).map(|_| path(&mut rng, 30)).collect();
    for strategy in strategies() {
        for reported in [true, false] {
            let mut world =
                World::of((0..20).map(|slot| entry(slot, slot != 3, &[("tier", "gold")])).collect());
            if reported {
                world.report(&figures());
            }
            for (at, prompt) in prompts.iter().enumerate() {
                let holder = world.targets[at % 20].id;
                world.index.place(holder, &prompt[..at.min(30)], 1);
            }
            let tried = [world.targets[0].clone()];
            let mut scratch = Scratch::new(1);
            let mut held = Vec::with_capacity(256);
            let mut round = |held: &mut Vec<_>| {
                for (turn, prompt) in prompts.iter().enumerate() {
                    let request = PlanRequest {
                        session: (turn % 3 == 0).then_some(turn as u64),
                        user: (turn % 4 == 0).then_some(turn as u64 % 8),
                        labels: (turn % 5 == 0).then_some(&labels),
                        tried: if turn % 7 == 0 { &tried } else { &[] },
                        ..request(&strategy, prompt, 1_000_000 + 1_000 * turn as u64)
                    };
                    let mut plan = plan(&request, &world.fleet, &mut scratch).unwrap();
                    if turn % 2 == 0 {
                        plan.reservation.first_token(request.now_us + 5);
                        held.push(plan);
                    }
                }
            };
            round(&mut held);
            let count = allocations(|| round(&mut held));
            assert_eq!(count, 0, "{}, reports {reported}", strategy.label());
        }
    }
}
