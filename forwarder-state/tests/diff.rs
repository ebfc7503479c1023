// SPDX-License-Identifier: MIT OR Apache-2.0
//! The laws of `diff`: its operations turn any state into any other, and every prefix of them is
//! safe.

use std::collections::BTreeMap;

use forwarder_state::diff::{Change, FamilyChange, diff};
use forwarder_testkit::laws::{apply, check, holding, tables};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn plan_leads_from_any_state_to_any_other(before in tables(), after in tables()) {
        let mut kernel = holding(&before);
        prop_assert_eq!(&kernel.tables, &before);
        for op in diff(&kernel.clone(), &after) {
            apply(&mut kernel, &op);
            check(&kernel, &before, &after);
        }
        prop_assert_eq!(&kernel.tables, &after);
        prop_assert_eq!(diff(&kernel, &after), vec![]);
    }

    /// A plan that breaks off anywhere is repaired by the next.
    #[test]
    fn next_plan_repairs_an_interrupted_one(
        before in tables(), after in tables(), cut in 0_usize..40,
    ) {
        let mut kernel = holding(&before);
        for op in diff(&kernel.clone(), &after).iter().take(cut) {
            apply(&mut kernel, op);
        }
        for op in diff(&kernel.clone(), &after) {
            apply(&mut kernel, &op);
        }
        prop_assert_eq!(&kernel.tables, &after);
    }

    /// Sockets are severed once no port leads where one led before.
    #[test]
    fn sockets_are_severed_after_the_last_change(before in tables(), after in tables()) {
        let kernel = holding(&before);
        let ops = diff(&kernel, &after);
        let severed = ops.iter().position(|op| *op == Change::SeverSockets);
        let stays = before.v4.published.iter().all(|(key, old)| {
            after.v4.published.get(key).is_some_and(|new| (new.addr, new.port) == (old.addr, old.port))
        });
        prop_assert_eq!(severed.is_none(), stays);
        let changes = |op: &Change| matches!(
            op,
            Change::V4(FamilyChange::PutPublished { .. } | FamilyChange::DropPublished { .. })
        );
        if let (Some(severed), Some(last)) = (severed, ops.iter().rposition(changes)) {
            prop_assert!(last < severed, "severed while ports still lead there");
        }
    }

    #[test]
    fn unchanged_endpoints_keep_their_slots(before in tables(), after in tables()) {
        let kernel = holding(&before);
        let mut later = kernel.clone();
        for op in diff(&kernel, &after) {
            apply(&mut later, &op);
        }
        let stayed: BTreeMap<_, _> = kernel
            .v4
            .endpoints
            .iter()
            .filter(|(key, _)| after.v4.endpoints.contains_key(key))
            .collect();
        for (key, slot) in stayed {
            prop_assert_eq!(later.v4.endpoints.get(key), Some(slot));
        }
    }
}
