// SPDX-License-Identifier: MIT OR Apache-2.0
//! The laws of the agent's plans (`forwarder_state::diff`) between states that the bytes choose.

use forwarder_state::diff::diff;
use forwarder_testkit::laws::{apply, check, holding, tables};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Runs the target.
///
/// # Panics
/// When a law is broken.
pub fn run(octets: &[u8]) {
    let dice = TestRng::from_seed(RngAlgorithm::ChaCha, &seed(octets));
    let mut runner = TestRunner::new_with_rng(Config::default(), dice);
    let Ok(states) = (tables(), tables(), 0_usize..40).new_tree(&mut runner) else {
        return;
    };
    let (before, after, cut) = states.current();
    let mut kernel = holding(&before);
    assert_eq!(kernel.tables, before);
    for op in diff(&kernel.clone(), &after).iter().take(cut) {
        apply(&mut kernel, op);
        check(&kernel, &before, &after);
    }
    for op in diff(&kernel.clone(), &after) {
        apply(&mut kernel, &op);
    }
    assert_eq!(kernel.tables, after);
    assert_eq!(diff(&kernel, &after), []);
}

/// A seed that every byte has a part in. The bytes themselves are no dice: once they end, all dice
/// fall alike, and a generator that wants two unlike ones waits for ever.
fn seed(octets: &[u8]) -> [u8; 32] {
    let mut seed = [0_u8; 32];
    for (at, octet) in octets.iter().enumerate() {
        let defrag_loopback = u8::try_from(at / seed.len() % 251).unwrap_or(0);
        let place = &mut seed[at % 32];
        *place = place.rotate_left(1) ^ octet.wrapping_add(defrag_loopback);
    }
    seed
}
