//! Two buffers written by one system call.
#![allow(unsafe_code)]

use bytes::{Buf, Bytes};

/// A head and a body that leave together without being copied into one buffer.
///
/// The vector of pointers lives in a box of its own: the value itself moves while an operation is in flight,
/// what the kernel looks at does not.
pub struct Gather {
    bufs: [Bytes; 2],
    iov: Box<[libc::iovec; 2]>,
}

impl Gather {
    /// Gathers `first` and then `second`.
    pub fn new(first: Bytes, second: Bytes) -> Self {
        let mut this = Self { bufs: [first, second], iov: Box::new([EMPTY, EMPTY]) };
        this.point();
        this
    }

    /// Bytes still to be written.
    pub fn remaining(&self) -> usize {
        self.bufs[0].len() + self.bufs[1].len()
    }

    /// Drops `count` written bytes from the front.
    pub fn advance(&mut self, count: usize) {
        let first = count.min(self.bufs[0].len());
        self.bufs[0].advance(first);
        let second = (count - first).min(self.bufs[1].len());
        self.bufs[1].advance(second);
        self.point();
    }

    fn point(&mut self) {
        for (slot, buf) in self.iov.iter_mut().zip(&self.bufs) {
            *slot = libc::iovec { iov_base: buf.as_ptr() as *mut libc::c_void, iov_len: buf.len() };
        }
    }
}

const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

// SAFETY: the vector is boxed, so its address does not change when the value moves; it points into `Bytes` that
// the value owns, whose storage is on the heap or static and is not changed while the runtime owns the value
// (`advance` needs `&mut self`). The length is that of the array.
unsafe impl monoio::buf::IoVecBuf for Gather {
    fn read_iovec_ptr(&self) -> *const libc::iovec {
        self.iov.as_ptr()
    }

    fn read_iovec_len(&self) -> usize {
        self.iov.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advance_crosses_the_border() {
        let mut gather = Gather::new(Bytes::from_static(b"abc"), Bytes::from_static(b"defg"));
        assert_eq!(gather.remaining(), 7);
        gather.advance(2);
        assert_eq!((gather.iov[0].iov_len, gather.iov[1].iov_len), (1, 4));
        gather.advance(3);
        assert_eq!((gather.iov[0].iov_len, gather.iov[1].iov_len), (0, 2));
        gather.advance(9);
        assert_eq!(gather.remaining(), 0);
    }
}
