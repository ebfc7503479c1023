// SPDX-License-Identifier: MIT OR Apache-2.0
//! Docker's networks and containers, read from its socket.
//!
//! An event only says where to look: it leads to a fresh read of the object that it names, and an
//! object that is not found has gone. Therefore a lost, doubled or reordered event does no harm,
//! and all updates take the same path.
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use bollard::Docker;
use bollard::models::{EventMessage, EventMessageTypeEnum};
use bollard::query_parameters::{EventsOptionsBuilder, ListContainersOptionsBuilder};
use forwarder_state::host_state::{Container, ContainerId, Listing, NetworkId, Update};
use futures_util::{StreamExt, stream};
use tokio::sync::Notify;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::bounded::Unfinished;
use super::{dial, inspect};
use crate::sys::netns::{self, Namespaces};

/// The interval at which everything is read again, for changes without an event.
const RESYNC: Duration = Duration::from_secs(30);
/// The interval at which containers with links are read again: there is no event for the removal of
/// a link.
const RELINK: Duration = Duration::from_secs(1);
/// How long the first list waits for an object: the daemon holds a container locked while it starts
/// it.
const LOCKED: Duration = Duration::from_secs(1);
/// The pause before a failed read is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// The maximum number of networks and containers that are followed: more than the kernel's maps
/// hold.
const OBJECTS: usize = 32_768;
/// The number of simultaneous requests while everything is read.
const PARALLEL: usize = 16;

/// Follows the daemon at `address` (`unix:///…`) until `updates` is closed, through all its
/// restarts.
///
/// An error is one that waiting does not repair: an address of another kind, a socket without
/// permission, a daemon that is too old. A socket that is missing or refuses connections is waited
/// for. `renumber` requests that everything is read once more, because the known namespace numbers
/// may be wrong.
pub async fn watch(address: &str, renumber: &Notify, updates: &Sender<Update>) -> Result<()> {
    let Some(path) = address
        .strip_prefix("unix://")
        .filter(|path| path.starts_with('/'))
    else {
        bail!(
            "Docker's address {address} is not a unix:///path: the forwarder runs on the Docker host itself"
        );
    };
    let namespaces = Namespaces::open()?;
    let whole = Unfinished::default();
    loop {
        let (docker, version) = tokio::select! {
            connected = dial::dial(path, &whole) => connected?,
            () = updates.closed() => return Ok(()),
        };
        tracing::info!(version, "Docker answers");
        if updates.send(Update::DockerUp { version }).await.is_err() {
            return Ok(());
        }
        let mut session = Session {
            docker,
            whole: &whole,
            namespaces: &namespaces,
            updates,
            renumber,
            known: BTreeSet::new(),
            linked: BTreeSet::new(),
            reads: BTreeMap::new(),
            tasks: JoinSet::new(),
        };
        let Err(lost) = session.follow().await else {
            return Ok(());
        };
        if updates.is_closed() {
            return Ok(());
        }
        let why = format!("{lost:#}");
        tracing::warn!(why, "Docker does not answer; everything stays as it is");
        if updates.send(Update::DockerDown { why }).await.is_err() {
            return Ok(());
        }
        // The pause prevents a busy loop with a daemon whose answers cannot be read.
        sleep(RETRY).await;
    }
}

/// The object that an event names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Object {
    Network(NetworkId),
    Container(ContainerId),
}

/// A read in progress.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    /// Its answer is current.
    Asked,
    /// An event has arrived since it began: read again.
    Outdated,
}

const CLOSED: &str = "the daemon closed its event stream";

type Answer = Result<Update, bollard::errors::Error>;

/// One connection to one daemon.
struct Session<'a> {
    docker: Docker,
    /// Told of each complete event.
    whole: &'a Unfinished,
    namespaces: &'a Namespaces,
    updates: &'a Sender<Update>,
    renumber: &'a Notify,
    /// Objects that this daemon has listed. An object that it no longer lists is read by its id.
    known: BTreeSet<Object>,
    /// Containers with links.
    linked: BTreeSet<Object>,
    /// One read at a time per object, so that an old answer never arrives after a newer one.
    reads: BTreeMap<Object, Read>,
    tasks: JoinSet<(Object, Answer)>,
}

impl Session<'_> {
    /// Reads everything, then follows the events. An error means the end of the connection; Ok
    /// means that the receiver is closed.
    async fn follow(&mut self) -> Result<()> {
        // Events that occur while the lists are read are handled afterwards. The daemon subscribes
        // the reader a moment after it has answered, so events of the last moment are requested
        // too.
        #[expect(
            clippy::disallowed_methods,
            reason = "Docker counts by the clock; what a step hides, the next full list shows"
        )]
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let kinds = [("type", vec!["container", "network", "daemon"])].into();
        let options = EventsOptionsBuilder::new()
            .since(&since.saturating_sub(1).to_string())
            .filters(&kinds)
            .build();
        let (docker, whole) = (self.docker.clone(), self.whole);
        let mut events = Box::pin(docker.events(Some(options)));
        let mut early = Vec::new();
        {
            let mut lists = Box::pin(self.read_all());
            loop {
                tokio::select! {
                    done = &mut lists => break done?,
                    event = events.next() => {
                        early.push(event.context(CLOSED)??);
                        whole.is_whole();
                        ensure!(early.len() <= OBJECTS, "more than {OBJECTS} events arrived while \
                            the lists were read");
                    }
                }
            }
        }
        for event in early {
            self.happened(event).await?;
        }
        let mut resync = interval(RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        resync.reset();
        let mut relink = interval(RELINK);
        relink.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.next() => {
                    let event = event.context(CLOSED)??;
                    whole.is_whole();
                    self.happened(event).await?;
                }
                Some(done) = self.tasks.join_next() => {
                    let (object, answer) = done.context("a task that reads Docker's state \
                        panicked")?;
                    self.answered(object, answer).await;
                }
                _ = resync.tick() => self.resync().await?,
                _ = relink.tick() => {
                    self.linked.clone().into_iter().for_each(|object| self.look(object));
                }
                () = self.renumber.notified() => self.resync().await?,
                () = self.updates.closed() => return Ok(()),
            }
        }
    }

    async fn happened(&mut self, event: EventMessage) -> Result<()> {
        if event.typ == Some(EventMessageTypeEnum::DAEMON) {
            return self.resync().await;
        }
        concerns(event)
            .into_iter()
            .for_each(|object| self.look(object));
        Ok(())
    }

    /// Reads the first, full lists. Objects that cannot be read yet follow later.
    async fn read_all(&mut self) -> Result<()> {
        let listed = self.list().await?;
        let (mut networks, mut containers) = (Listing::default(), Listing::default());
        let mut answers = stream::iter(listed.clone())
            .map(|object| {
                let docker = self.docker.clone();
                async move {
                    let answer = timeout(LOCKED, read(&docker, &object)).await;
                    (object, answer)
                }
            })
            .buffer_unordered(PARALLEL);
        let mut unread = Vec::new();
        while let Some((object, answer)) = answers.next().await {
            match answer {
                Ok(Ok(Update::Network(network))) => networks.list.push(*network),
                Ok(Ok(Update::Container(container))) => {
                    containers.list.push(self.numbered(*container).await);
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!("cannot read {object:?}: {:#}", anyhow::Error::from(error));
                    unread.push(object);
                }
                Err(_) => unread.push(object),
            }
        }
        drop(answers);
        for container in containers.list.iter().filter(|c| !c.links.is_empty()) {
            self.linked.insert(Object::Container(container.id.clone()));
        }
        for object in &unread {
            match object.clone() {
                Object::Network(id) => networks.unread.push(id),
                Object::Container(id) => containers.unread.push(id),
            }
        }
        self.updates.send(Update::Networks(networks)).await?;
        self.updates.send(Update::Containers(containers)).await?;
        self.known.extend(listed);
        unread.into_iter().for_each(|object| self.look(object));
        Ok(())
    }

    /// Returns what the daemon lists. Both lists need none of its locks.
    async fn list(&self) -> Result<BTreeSet<Object>> {
        let everything = ListContainersOptionsBuilder::new().all(true).build();
        let lists = async {
            tokio::try_join!(
                self.docker.list_networks(None),
                self.docker.list_containers(Some(everything))
            )
        };
        let (networks, containers) = timeout(10 * LOCKED, lists)
            .await
            .context("Docker does not answer")??;
        let networks = networks
            .into_iter()
            .filter_map(|n| Some(Object::Network(NetworkId(n.id?))));
        let containers = containers
            .into_iter()
            .filter_map(|c| Some(Object::Container(ContainerId(c.id?))));
        let all: BTreeSet<_> = networks.chain(containers).collect();
        let count = all.len();
        ensure!(
            count <= OBJECTS,
            "Docker lists {count} networks and containers: more than {OBJECTS} are not followed"
        );
        Ok(all)
    }

    /// Reads everything that is or was listed.
    async fn resync(&mut self) -> Result<()> {
        let all = &self.list().await? | &self.known;
        all.into_iter().for_each(|object| self.look(object));
        Ok(())
    }

    /// Reads `object` now, or again after a read in progress.
    fn look(&mut self, object: Object) {
        if let Some(read) = self.reads.get_mut(&object) {
            *read = Read::Outdated;
        } else {
            self.ask(object, Duration::ZERO);
        }
    }

    fn ask(&mut self, object: Object, delay: Duration) {
        let docker = self.docker.clone();
        self.reads.insert(object.clone(), Read::Asked);
        self.tasks.spawn(async move {
            sleep(delay).await;
            let answer = read(&docker, &object).await;
            (object, answer)
        });
    }

    async fn answered(&mut self, object: Object, answer: Answer) {
        let outdated = self.reads.remove(&object) == Some(Read::Outdated);
        let delay = match answer {
            Ok(update) => {
                let update = match update {
                    Update::Container(container) => {
                        Update::Container(Box::new(self.numbered(*container).await))
                    }
                    update => update,
                };
                match &update {
                    Update::Container(container) if !container.links.is_empty() => {
                        self.linked.insert(object.clone());
                    }
                    _ => _ = self.linked.remove(&object),
                }
                if matches!(update, Update::NetworkGone(_) | Update::ContainerGone(_)) {
                    self.known.remove(&object);
                } else {
                    self.known.insert(object.clone());
                }
                // A closed channel ends the loop.
                let _ = self.updates.send(update).await;
                outdated.then_some(Duration::ZERO)
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::debug!("cannot read {object:?}, trying again: {error:#}");
                Some(RETRY)
            }
        };
        if let Some(delay) = delay {
            self.ask(object, delay);
        }
    }

    /// Adds the number of the container's network namespace.
    async fn numbered(&self, mut container: Container) -> Container {
        if container.running
            && let Ok(namespace) = netns::open(&container.sandbox_key, container.pid)
        {
            container.netns = self.namespaces.id(&namespace).await;
        }
        container
    }
}

/// Reads one object. Networks answer at once, a container only when the daemon is not starting it.
async fn read(docker: &Docker, object: &Object) -> Answer {
    let update = match object {
        Object::Network(id) => docker
            .inspect_network(&id.0, None)
            .await
            .map(|json| inspect::network(json).map(|network| Update::Network(Box::new(network)))),
        Object::Container(id) => docker.inspect_container(&id.0, None).await.map(|json| {
            inspect::container(json).map(|container| Update::Container(Box::new(container)))
        }),
    };
    let gone = || match object.clone() {
        Object::Network(id) => Update::NetworkGone(id),
        Object::Container(id) => Update::ContainerGone(id),
    };
    match update {
        Ok(update) => Ok(update.unwrap_or_else(gone)),
        Err(bollard::errors::Error::DockerResponseServerError {
            status_code: 404, ..
        }) => Ok(gone()),
        Err(error) => Err(error),
    }
}

/// Returns the objects that an event names.
fn concerns(event: EventMessage) -> Vec<Object> {
    let (Some(actor), Some(action)) = (event.actor, event.action) else {
        return Vec::new();
    };
    let Some(id) = actor.id else {
        return Vec::new();
    };
    match event.typ {
        Some(EventMessageTypeEnum::NETWORK) => {
            let container = actor
                .attributes
                .and_then(|mut attributes| attributes.remove("container"));
            let mut objects = vec![Object::Network(NetworkId(id))];
            objects.extend(container.map(|id| Object::Container(ContainerId(id))));
            objects
        }
        Some(EventMessageTypeEnum::CONTAINER) => match action.as_str() {
            "create" | "start" | "restart" | "die" | "stop" | "kill" | "oom" | "pause"
            | "unpause" | "rename" | "update" | "destroy" => {
                vec![Object::Container(ContainerId(id))]
            }
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(event: &str) -> Vec<Object> {
        concerns(serde_json::from_str(event).unwrap())
    }

    #[test]
    fn network_event_concerns_both_ends() {
        let event = r#"{"Type":"network","Action":"connect","Actor":{"ID":"f711d44070ae","Attributes":
            {"container":"160dfb9e92fc","name":"web","type":"bridge"}},"scope":"local","time":1764017699}"#;
        let both = [
            Object::Network("f711d44070ae".into()),
            Object::Container("160dfb9e92fc".into()),
        ];
        assert_eq!(objects(event), both);
        let event = r#"{"Type":"network","Action":"destroy","Actor":{"ID":"f711d44070ae","Attributes":{"name":"web"}}}"#;
        assert_eq!(objects(event), both[..1]);
    }

    /// A container event leads to a new look at the container when it can matter.
    #[test]
    fn relevant_container_events_are_followed() {
        let event = |action: &str| {
            format!(
                r#"{{"status":"{action}","id":"160dfb9e92fc","from":"web:1","Type":"container","Action":"{action}",
                    "Actor":{{"ID":"160dfb9e92fc","Attributes":{{"image":"web:1","name":"c1"}}}}}}"#
            )
        };
        for action in [
            "create", "start", "die", "pause", "unpause", "rename", "destroy", "kill", "update",
        ] {
            assert_eq!(
                objects(&event(action)),
                [Object::Container("160dfb9e92fc".into())],
                "{action}"
            );
        }
        for action in ["exec_start: sh", "health_status: healthy", "attach", "top"] {
            assert!(objects(&event(action)).is_empty(), "{action}");
        }
    }
}
