// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! The global functions of connection tracking: the verifier proves each once, by itself, and not
//! again on every path that leads to a call. `forwarder_common::subprograms` lists them.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::EbpfContext;
use forwarder_common::family::V4;
use forwarder_common::for_each_subprogram;
use forwarder_common::subprograms::{Subprograms, Word};

use crate::kernel::Kernel;

/// Stands for a program's context: these functions access maps only.
struct Nowhere;

impl EbpfContext for Nowhere {
    fn as_ptr(&self) -> *mut c_void {
        ptr::null_mut()
    }
}

macro_rules! global_functions {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? = $($path:ident)::+;)+) => {
        #[expect(unused_parens, reason = "the result is a list of at most one type")]
        mod global {
            use super::{Kernel, Nowhere, Word};

            $(
                $(#[$doc])*
                #[unsafe(no_mangle)]
                #[inline(never)]
                pub extern "C" fn $name(
                    $($arg: <$type as Word>::Number),*
                ) -> <($($out)?) as Word>::Number {
                    let tables = Kernel { ctx: Nowhere };
                    forwarder_common::$($path)::+(&tables, $(Word::unpack($arg)),*).pack()
                }
            )+
        }

        impl<C: EbpfContext> Subprograms<V4> for Kernel<C> {
            $(
                #[inline(always)]
                fn $name(&self, $($arg: $type),*) $(-> $out)? {
                    Word::unpack(global::$name($($arg.pack()),*))
                }
            )+
        }
    };
}

for_each_subprogram!(global_functions);
