//! One operation below a layer: made anew again and again, in the same memory.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

/// An operation that takes `I` and gives `T`, one at a time. Its future has no name, so it lives behind a pointer; the
/// memory there is used again for every one.
pub struct Op<I, T> {
    slot: Pin<Box<dyn Slot<I, T>>>,
    pending: bool,
}

trait Slot<I, T> {
    fn start(self: Pin<&mut Self>, input: I);
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T>;
}

pin_project! {
    struct Reused<M, F> {
        make: M,
        #[pin]
        future: Option<F>,
    }
}

impl<I, T, M: Fn(I) -> F, F: Future<Output = T>> Slot<I, T> for Reused<M, F> {
    fn start(self: Pin<&mut Self>, input: I) {
        let mut this = self.project();
        let future = (this.make)(input);
        this.future.set(Some(future));
    }

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut this = self.project();
        let Some(future) = this.future.as_mut().as_pin_mut() else { return Poll::Pending };
        let polled = future.poll(cx);
        if polled.is_ready() {
            // What it held is given back now.
            this.future.set(None);
        }
        polled
    }
}

impl<I, T> Op<I, T> {
    /// The operation that `make` begins.
    pub fn new<F: Future<Output = T> + 'static>(make: impl Fn(I) -> F + 'static) -> Self {
        Self { slot: Box::pin(Reused { make, future: None }), pending: false }
    }

    /// Begins one. The one before has ended.
    pub fn start(&mut self, input: I) {
        debug_assert!(!self.pending, "one at a time");
        self.slot.as_mut().start(input);
        self.pending = true;
    }

    /// Whether one is under way.
    pub fn is_pending(&self) -> bool {
        self.pending
    }

    /// Ready with the result of the one under way; never without one.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<T> {
        if !self.pending {
            return Poll::Pending;
        }
        let polled = self.slot.as_mut().poll(cx);
        self.pending = polled.is_pending();
        polled
    }
}
