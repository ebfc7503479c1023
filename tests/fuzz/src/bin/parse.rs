//! `forwarder_fuzz::parse` as a fuzzer.
#![cfg_attr(fuzzing, no_main)]

forwarder_fuzz::target!(forwarder_fuzz::parse::run);
