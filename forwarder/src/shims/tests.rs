//! Who hears what when, for a few shims that are nothing but the ends of channels.

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::world::{Container, Listing, PortBinding, Proto, Seen};

const PORT: HostPort = HostPort {
    proto: Proto::Tcp,
    ip: std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
    port: 8080,
};

struct Stage {
    world: World,
    shims: Shims,
    ears: BTreeMap<u64, UnboundedReceiver<Word>>,
    now: Instant,
}

impl Stage {
    /// An agent that has been there for a while, with Docker answering.
    fn new() -> Self {
        let now = Instant::now();
        let mut world = World::default();
        world.apply(Fact::DockerUp {
            version: "20.10".into(),
        });
        world.seen = Seen {
            networks: true,
            containers: true,
            links: true,
            addresses: true,
        };
        Self {
            world,
            shims: Shims::new(now),
            ears: BTreeMap::new(),
            now: now + FINDING,
        }
    }

    fn news(&mut self, shim: u64, news: News) -> bool {
        let shim = ShimId(shim);
        self.shims
            .hear(Call { shim, news }, &mut self.world, self.now)
    }

    fn come(&mut self, shim: u64) {
        let (words, ear) = unbounded_channel();
        self.ears.insert(shim, ear);
        self.news(shim, News::Came(words));
    }

    /// Binds the port, to 172.17.0.LAST, and syncs.
    fn bind(&mut self, shim: u64, last: u8, orphan: bool) {
        self.come(shim);
        self.again(shim, last, orphan);
    }

    fn again(&mut self, shim: u64, last: u8, orphan: bool) {
        if self.news(
            shim,
            News::Asks(Question::Bind(binding(PORT, last, orphan))),
        ) {
            self.shims.synced(|_| Ok(()));
        }
    }

    fn reclaim(&mut self, shim: u64, port: HostPort) {
        self.come(shim);
        self.news(shim, News::Asks(Question::Reclaim(binding(port, 9, false))));
    }

    fn hears(&mut self, shim: u64) -> Option<Word> {
        self.ears.get_mut(&shim).unwrap().try_recv().ok()
    }

    /// Where the port leads by the shims' word.
    fn leads_to(&self) -> Option<String> {
        let bound = self.world.bound.get(&PORT)?;
        Some(bound.container_ip.to_string())
    }
}

fn binding(port: HostPort, last: u8, orphan: bool) -> Binding {
    Binding {
        proto: port.proto,
        host_ip: port.ip,
        host_port: port.port,
        container_ip: [172, 17, 0, last].into(),
        container_port: 80,
        orphan,
    }
}

/// A running container that publishes the port.
fn publisher() -> Container {
    Container {
        id: "c1".into(),
        running: true,
        ports: vec![PortBinding {
            proto: PORT.proto,
            host_ip: PORT.ip,
            host_port: PORT.port,
            container_port: 80,
        }],
        ..Container::default()
    }
}

#[test]
fn a_bind_is_answered_after_the_sync_that_carries_it_out() {
    let mut stage = Stage::new();
    stage.come(1);
    let asks = |last| News::Asks(Question::Bind(binding(PORT, last, false)));
    assert!(stage.news(1, asks(2)), "a sync is due");
    assert_eq!(stage.hears(1), None);
    stage.shims.synced(|port| Err(format!("no {port}")));
    let no = Word::Error("no 0.0.0.0:8080/tcp".into());
    assert_eq!(stage.hears(1), Some(no));
    assert!(stage.news(1, asks(2)));
    stage.shims.synced(|_| Ok(()));
    assert_eq!(stage.hears(1), Some(Word::Ok(())));
    assert_eq!(stage.leads_to().unwrap(), "172.17.0.2");
}

#[test]
fn what_is_given_back_is_in_no_list_any_more() {
    let mut stage = Stage::new();
    stage
        .world
        .apply(Fact::Containers(Listing::from(vec![publisher()])));
    stage.bind(1, 2, false);
    assert_eq!(stage.hears(1), Some(Word::Ok(())));
    assert!(stage.world.publishes(&PORT));
    assert!(stage.news(1, News::Asks(Question::Unbind)));
    assert!(!stage.world.publishes(&PORT) && stage.leads_to().is_none());
    assert_eq!(stage.hears(1), None);
    stage.shims.synced(|_| Ok(()));
    assert_eq!(stage.hears(1), Some(Word::Ok(())));
    assert!(stage.ears.get_mut(&1).unwrap().is_closed(), "it may end");
}

#[test]
fn a_shim_that_dies_leaves_what_docker_lists() {
    let mut stage = Stage::new();
    stage
        .world
        .apply(Fact::Containers(Listing::from(vec![publisher()])));
    stage.bind(1, 2, false);
    assert!(stage.news(1, News::Went));
    assert!(stage.leads_to().is_none() && stage.world.publishes(&PORT));
}

#[test]
fn a_port_that_is_taken_is_refused_while_its_shim_lives() {
    let mut stage = Stage::new();
    stage.bind(1, 2, false);
    stage.bind(2, 3, false);
    let Some(Word::Error(why)) = stage.hears(2) else {
        panic!("no refusal")
    };
    assert_eq!(
        why,
        "0.0.0.0:8080/tcp is published already: it leads to 172.17.0.2"
    );
    assert_eq!(stage.leads_to().unwrap(), "172.17.0.2");
    stage.news(1, News::Went);
    stage.again(2, 3, false);
    assert_eq!(stage.hears(2), Some(Word::Ok(())));
    assert_eq!(stage.leads_to().unwrap(), "172.17.0.3");
}

#[test]
fn an_orphan_lets_go_for_who_reclaims_and_the_mapping_stays_throughout() {
    let mut stage = Stage::new();
    stage.bind(1, 2, true);
    stage.hears(1);
    stage.reclaim(2, PORT);
    assert_eq!(stage.hears(1), Some(Word::Release(())));
    assert_eq!(stage.hears(2), None, "the orphan still holds it");
    assert!(!stage.news(1, News::Went), "nothing changes");
    assert_eq!(stage.hears(2), Some(Word::Ok(())));
    assert_eq!(stage.leads_to().unwrap(), "172.17.0.2");
    stage.again(2, 3, false);
    assert_eq!(stage.leads_to().unwrap(), "172.17.0.3");
    // A claimant that dies leaves nothing.
    stage.news(2, News::Went);
    assert!(stage.leads_to().is_none());
}

#[test]
fn a_reclaim_concerns_all_that_overlap_and_nothing_else() {
    let mut stage = Stage::new();
    stage.bind(1, 2, true);
    stage.hears(1);
    let on = |ip: [u8; 4], proto| HostPort {
        ip: ip.into(),
        proto,
        ..PORT
    };
    stage.reclaim(2, on([127, 0, 0, 1], Proto::Udp));
    assert_eq!(stage.hears(1), None);
    let Some(Word::Error(why)) = stage.hears(2) else {
        panic!("no refusal")
    };
    assert_eq!(why, "no orphan holds 127.0.0.1:8080/udp");
    stage.reclaim(3, on([127, 0, 0, 1], Proto::Tcp));
    assert_eq!(stage.hears(1), Some(Word::Release(())));
    stage.news(1, News::Went);
    assert_eq!(stage.hears(3), Some(Word::Ok(())));
    assert!(stage.leads_to().is_none());
}

#[test]
fn a_young_agent_waits_for_orphans_to_find_it() {
    let mut stage = Stage::new();
    stage.shims = Shims::new(stage.now);
    stage.reclaim(2, PORT);
    assert_eq!(stage.hears(2), None);
    stage.bind(1, 2, true);
    assert_eq!(stage.hears(1), Some(Word::Release(())));
    stage.news(1, News::Went);
    assert_eq!(stage.hears(2), Some(Word::Ok(())));
    // And gives up when none has come.
    stage.reclaim(3, HostPort { port: 81, ..PORT });
    assert_eq!(stage.hears(3), None);
    stage.now += FINDING;
    stage.shims.review(&mut stage.world, stage.now);
    assert!(matches!(stage.hears(3), Some(Word::Error(_))));
}

#[test]
fn orphans_go_when_docker_has_answered_and_knows_nobody_for_their_port() {
    let mut stage = Stage::new();
    stage
        .world
        .apply(Fact::Containers(Listing::from(vec![publisher()])));
    stage.bind(1, 2, false);
    stage.hears(1);
    let review = |stage: &mut Stage, later: Duration| {
        stage.now += later;
        stage.shims.review(&mut stage.world, stage.now);
        stage.hears(1)
    };
    stage.again(1, 2, true);
    assert_eq!(review(&mut stage, GRACE), Some(Word::Ok(())));
    assert_eq!(review(&mut stage, GRACE), None, "its container runs");
    stage.world.apply(Fact::DockerDown { why: String::new() });
    stage.world.apply(Fact::Containers(Listing::default()));
    assert_eq!(review(&mut stage, GRACE), None, "Docker is away");
    stage.world.apply(Fact::DockerUp {
        version: "20.10".into(),
    });
    stage.again(1, 2, true);
    stage.hears(1);
    assert_eq!(review(&mut stage, GRACE), Some(Word::Release(())));
    assert_eq!(review(&mut stage, GRACE), None, "once");
}
