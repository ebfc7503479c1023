// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checked access to a packet: two pointers, and every access is compared with the second.
//!
//! The verifier accepts a packet access only after a comparison of a packet pointer with
//! `data_end`; a slice compares lengths and is rejected. So the kernel side builds a [`Frame`] from
//! the context's two pointers, a host from a `&mut [u8]`, and both share one source. A frame must
//! not be used after a helper that moves packet data: the kernel side creates a new one.
#![expect(
    unsafe_code,
    reason = "the window type: the one place that turns pointers into values"
)]

use core::marker::PhantomData;
use core::ptr;

use bytemuck::Pod;

/// A packet's bytes from the link layer on. Copies of a frame refer to the same bytes.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    start: *mut u8,
    end: *mut u8,
    bytes: PhantomData<&'a mut [u8]>,
}

impl<'a> Frame<'a> {
    /// A frame over `bytes`.
    #[inline(always)]
    pub fn new(bytes: &'a mut [u8]) -> Self {
        let range = bytes.as_mut_ptr_range();
        Self {
            start: range.start,
            end: range.end,
            bytes: PhantomData,
        }
    }

    /// A frame over the bytes from `start` up to `end`.
    ///
    /// # Safety
    /// `start..end` must be readable and writable for `'a`, and accessed through this frame only;
    /// in a BPF program, they are the context's `data` and `data_end`.
    #[inline(always)]
    pub unsafe fn from_raw(start: *mut u8, end: *mut u8) -> Self {
        Self {
            start,
            end,
            bytes: PhantomData,
        }
    }

    /// The value at `offset`, or `None` if it is not completely inside.
    #[inline(always)]
    #[must_use]
    pub fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        let at = self.place::<T>(offset)?;
        // SAFETY: `place` compared with `end`, and any bit pattern is a `T: Pod`.
        Some(unsafe { load(at.cast::<T>()) })
    }

    /// Writes `value` at `offset`; returns `false` and writes nothing if it does not fit inside.
    #[inline(always)]
    #[must_use]
    pub fn write<T: Pod>(&mut self, offset: usize, value: T) -> bool {
        let Some(at) = self.place::<T>(offset) else {
            return false;
        };
        // SAFETY: as in `read`, and the frame is borrowed mutably.
        unsafe { store(at.cast::<T>(), value) };
        true
    }

    #[inline(always)]
    fn place<T>(&self, offset: usize) -> Option<*mut u8> {
        let at = self.start.wrapping_add(offset);
        // The verifier recognises this form of a bounds check: packet pointer against end.
        if at.wrapping_add(size_of::<T>()) > self.end {
            None
        } else {
            Some(at)
        }
    }
}

// In BPF a load is one instruction: the verifier allows unaligned packet access wherever the
// processor supports it, while LLVM compiles an unaligned access byte by byte. (LLVM can be told
// that the machine supports unaligned access; then it also misaligns the stack, which the verifier
// rejects.) So the kernel side claims an alignment that a packet does not have, and the host side
// does not.

/// # Safety
/// `at` is readable for a `T`.
#[inline(always)]
unsafe fn load<T: Pod>(at: *const T) -> T {
    // SAFETY: as above.
    unsafe {
        if cfg!(target_arch = "bpf") {
            ptr::read(at)
        } else {
            ptr::read_unaligned(at)
        }
    }
}

/// # Safety
/// `at` is writable for a `T`.
#[inline(always)]
unsafe fn store<T: Pod>(at: *mut T, value: T) {
    // SAFETY: as above.
    unsafe {
        if cfg!(target_arch = "bpf") {
            ptr::write(at, value);
        } else {
            ptr::write_unaligned(at, value);
        }
    }
}
