//! The laws of the agent's plans (`forwarder::diff`), with the octets as the generator's dice.

use forwarder::diff::diff;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::laws::{apply, check, holding, tables};

/// Runs the target.
///
/// # Panics
/// When a law is broken.
pub fn run(octets: &[u8]) {
    let dice = TestRng::from_seed(RngAlgorithm::PassThrough, octets);
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
