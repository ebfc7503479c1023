// SPDX-License-Identifier: MIT OR Apache-2.0
//! `forwarder_fuzz::plan` as a fuzzer.
#![cfg_attr(fuzzing, no_main)]

forwarder_fuzz::target!(forwarder_fuzz::plan::run);
