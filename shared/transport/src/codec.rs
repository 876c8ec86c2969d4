//! Frames on streams: reading with every limit checked before memory is taken.

use std::sync::Arc;

use fairlead_wire::frame::{Frame, FrameError, Header};
use quinn::{ReadError, ReadExactError, RecvStream};
use rkyv::util::AlignedVec;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::LinkError;

/// A bound in bytes. A claim larger than the whole takes all of it, so that it passes alone instead of never.
#[derive(Clone)]
pub(crate) struct Budget {
    bytes: Arc<Semaphore>,
    total: u32,
}

impl Budget {
    pub(crate) fn new(total: usize) -> Self {
        let total = u32::try_from(total)
            .unwrap_or(u32::MAX)
            .clamp(1, (Semaphore::MAX_PERMITS >> 1).min(1 << 30) as u32);
        Self { bytes: Arc::new(Semaphore::new(total as usize)), total }
    }

    fn claim(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).clamp(1, self.total)
    }

    /// `None` when the budget is used up. The last bytes of a budget admit a frame of any size, so that
    /// [`Budget::has_room`] means that one more is taken; the bound is exceeded by one frame at most.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let free = u32::try_from(self.bytes.available_permits()).unwrap_or(u32::MAX);
        if free == 0 {
            return None;
        }
        self.bytes.clone().try_acquire_many_owned(self.claim(bytes).min(free)).ok()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.bytes.available_permits() > 0
    }

    /// Waits for room. `None` cannot occur while the budget exists.
    pub(crate) async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.bytes.clone().acquire_many_owned(self.claim(bytes)).await.ok()
    }
}

/// Reads one frame; `None` at the stream's end between two frames.
pub(crate) async fn read_frame(
    stream: &mut RecvStream,
    budget: &Budget,
) -> Result<Option<(Frame, Option<OwnedSemaphorePermit>)>, LinkError> {
    let mut head = [0; Header::LEN];
    match stream.read_exact(&mut head).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(error) => return Err(read_error(error, Header::LEN)),
    }
    let header = Header::decode(&head)?;
    let length = header.length as usize;
    let permit = budget.take(length).await;
    let mut payload = AlignedVec::<16>::with_capacity(length);
    payload.resize(length, 0);
    stream.read_exact(&mut payload).await.map_err(|error| read_error(error, length))?;
    Ok(Some((Frame::new(header, payload)?, permit)))
}

fn read_error(error: ReadExactError, want: usize) -> LinkError {
    match error {
        ReadExactError::FinishedEarly(have) => FrameError::Truncated { have, want }.into(),
        ReadExactError::ReadError(error) => stream_error(error),
    }
}

pub(crate) fn stream_error(error: ReadError) -> LinkError {
    match error {
        ReadError::ConnectionLost(error) => error.into(),
        other => LinkError::Transport(other.to_string().into()),
    }
}
