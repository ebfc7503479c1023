// SPDX-License-Identifier: MIT OR Apache-2.0
//! The question of the command line to the agent, and the answer.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What the agent answers about. Flows are not part of it: they are read from the pins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// The agent's own state.
    Status,
    /// Docker's networks.
    Networks,
    /// The containers' endpoints.
    Endpoints,
    /// The published ports.
    Ports,
    /// Nothing: the command line is about to stop the agent and to hand back to Docker's rules.
    Release,
    /// Nothing: the command line is about to stop the agent and to remove everything.
    Cleanup,
}

/// A question.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// What is asked.
    pub verb: Verb,
}

/// The answer to a question.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// What was asked for.
    Ok(Value),
    /// Why there is no answer.
    Error(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_and_answer_have_their_form() {
        let query = Query { verb: Verb::Status };
        let text = serde_json::to_string(&query).unwrap();
        assert_eq!(text, "{\"verb\":\"status\"}");
        assert_eq!(serde_json::from_str::<Query>(&text).unwrap(), query);
        assert!(serde_json::from_str::<Query>("{\"verb\":\"dance\"}").is_err());
        assert!(serde_json::from_str::<Query>("{\"verb\":\"status\",\"x\":1}").is_err());
        let answer = |answer: Answer| serde_json::to_string(&answer).unwrap();
        assert_eq!(answer(Answer::Ok(Value::from(7))), "{\"ok\":7}");
        assert_eq!(answer(Answer::Error("so".into())), "{\"error\":\"so\"}");
    }
}
