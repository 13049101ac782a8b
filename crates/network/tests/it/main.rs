//! Pods, Services and names in network namespaces of the tests' own: needs root and `nft`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use skeg_network::*;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Runs a test as if on a host of its own: a fresh network namespace for its thread and all
/// threads it starts.
fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce(tempfile::TempDir) -> F + Send + 'static) {
    std::thread::spawn(move || {
        // SAFETY: no memory is involved.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "these tests need root");
        run("ip", &["link", "set", "lo", "up"]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(tempfile::tempdir().unwrap()));
    })
    .join()
    .unwrap_or_else(|e| std::panic::resume_unwind(e));
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A Pod's network namespace.
struct Pod(File);

impl Pod {
    fn new() -> Pod {
        std::thread::spawn(|| {
            // SAFETY: no memory is involved.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
            Pod(File::open("/proc/thread-self/ns/net").unwrap())
        })
        .join()
        .unwrap()
    }

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let ns = self.0.try_clone().unwrap();
        std::thread::spawn(move || {
            // SAFETY: no memory is involved.
            assert_eq!(unsafe { libc::setns(ns.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
            work()
        })
    }

    /// Answers every connection with `name` and the client's address.
    fn serve(&self, name: &'static str, port: u16) {
        let listener =
            self.inside(move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).join().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let peer = stream.peer_addr().unwrap().ip();
                let _ = write!(stream, "{name} {peer}");
            }
        });
    }

    /// Answers every datagram with `name`.
    fn serve_udp(&self, name: &'static str, port: u16) {
        let socket =
            self.inside(move || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).join().unwrap();
        std::thread::spawn(move || {
            let mut question = [0; 16];
            while let Ok((_, from)) = socket.recv_from(&mut question) {
                let _ = socket.send_to(name.as_bytes(), from);
            }
        });
    }

    /// A socket of the Pod that goes on from one port.
    fn udp_client(&self, to: (Ipv4Addr, u16)) -> UdpSocket {
        self.inside(move || udp_client(to)).join().unwrap()
    }

    fn get(&self, address: impl Into<SocketAddr>) -> std::io::Result<String> {
        let address = address.into();
        self.inside(move || get(address)).join().unwrap()
    }
}

fn get(address: impl Into<SocketAddr>) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.into(), TIMEOUT)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn udp_client(to: (Ipv4Addr, u16)) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket.connect(to).unwrap();
    socket
}

fn ask(socket: &UdpSocket) -> std::io::Result<String> {
    // An earlier question's refusal may still be on its way up.
    socket.take_error()?;
    socket.send(b"?")?;
    let mut answer = [0; 16];
    let len = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..len]).into_owned())
}

fn refused<T>(result: std::io::Result<T>) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, PermissionDenied};
    // The latter is what the kernel tells a local sender of datagrams.
    result.is_err_and(|e| [ConnectionRefused, PermissionDenied].contains(&e.kind()))
}

/// Removes what an instance left, when it runs no more.
async fn purge(network: Arc<Network>, dir: &tempfile::TempDir, id: &str) {
    drop(network);
    skeg_network::purge(id, &config(dir, id, 0).state_dir).await.unwrap();
}

fn config(dir: &tempfile::TempDir, id: &str, net: u8) -> NetworkConfig {
    NetworkConfig {
        id: id.to_owned(),
        state_dir: dir.path().join(id),
        pod_cidr: format!("10.{net}.0.0/24").parse().unwrap(),
        service_cidr: format!("10.{net}.128.0/24").parse().unwrap(),
        cluster_domain: "cluster.local".to_owned(),
        dns_ip: Some(Ipv4Addr::new(10, net, 128, 10)),
        resolv_conf: dir.path().join("resolv.conf"),
    }
}

fn service(ip: Ipv4Addr, endpoints: &[(Ipv4Addr, u16)]) -> ServicePort {
    ServicePort {
        cluster_ip: ip,
        port: 80,
        protocol: Protocol::Tcp,
        endpoints: endpoints.iter().map(|(ip, port)| SocketAddrV4::new(*ip, *port)).collect(),
        node_port: None,
        affinity_s: None,
    }
}

#[test]
fn pods_and_services() {
    on_a_host(|dir| async move {
        let network = Network::open(config(&dir, "one", 71)).await.unwrap();
        let (a, b) = (Pod::new(), Pod::new());
        let ip_a = network.attach("a", &a.path(), &[]).await.unwrap().ip;
        let ip_b = network.attach("b", &b.path(), &[]).await.unwrap().ip;
        assert_eq!((ip_a, network.gateway()), (Ipv4Addr::new(10, 71, 0, 2), Ipv4Addr::new(10, 71, 0, 1)));
        a.serve("a", 8080);
        b.serve("b", 8081);
        // Between Pods and from the host, with the client's own address.
        assert_eq!(b.get((ip_a, 8080)).unwrap(), format!("a {ip_b}"));
        assert_eq!(get((ip_b, 8081)).unwrap(), "b 10.71.0.1");
        assert_eq!(a.get((Ipv4Addr::LOCALHOST, 8080)).unwrap(), "a 127.0.0.1");

        let vip = Ipv4Addr::new(10, 71, 128, 1);
        let mut both = service(vip, &[(ip_a, 8080), (ip_b, 8081)]);
        both.node_port = Some(30080);
        let nobody = service(Ipv4Addr::new(10, 71, 128, 2), &[]);
        network.set_services(vec![both.clone(), nobody.clone()]).await.unwrap();
        let mut seen = BTreeSet::new();
        for _ in 0..60 {
            seen.insert(b.get((vip, 80)).unwrap());
        }
        // b reaches itself too, as the gateway; and a sees b's own address.
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [format!("a {ip_b}"), "b 10.71.0.1".to_owned()]);
        assert!(["a 10.71.0.1", "b 10.71.0.1"].contains(&get((vip, 80)).unwrap().as_str()));
        assert!(get((Ipv4Addr::LOCALHOST, 30080)).unwrap().ends_with(" 10.71.0.1"));
        assert!(get((network.gateway(), 30080)).is_ok() && b.get((network.gateway(), 30080)).is_ok());
        assert!(refused(b.get((nobody.cluster_ip, 80))) && refused(get((nobody.cluster_ip, 80))));

        // Affinity keeps a client with its endpoint.
        both.affinity_s = Some(100);
        network.set_services(vec![both.clone()]).await.unwrap();
        let first = a.get((vip, 80)).unwrap();
        for _ in 0..20 {
            assert_eq!(a.get((vip, 80)).unwrap(), first);
        }
        // A restart interrupts nothing and forgets nobody; what has gone meanwhile goes.
        network.set_services(vec![both.clone(), service(nobody.cluster_ip, &[(ip_a, 8080)])]).await.unwrap();
        drop(network);
        tokio::task::yield_now().await;
        let network = reopen(config(&dir, "one", 71)).await;
        assert_eq!(a.get((vip, 80)).unwrap(), first);
        network.set_services(vec![both.clone(), nobody.clone()]).await.unwrap();
        for _ in 0..20 {
            assert_eq!(a.get((vip, 80)).unwrap(), first);
        }
        assert!(refused(b.get((nobody.cluster_ip, 80))));
        both.endpoints.remove(0);
        network.set_services(vec![both.clone()]).await.unwrap();
        assert_eq!(a.get((vip, 80)).unwrap(), format!("b {ip_a}"));
        network.set_services(vec![]).await.unwrap();
        assert!(refused(a.get((vip, 80))));
        purge(network, &dir, "one").await;
        assert_eq!(run("nft", &["list", "ruleset"]), "");
        assert!(!run("ip", &["-o", "link"]).contains("skeg"));
    });
}

#[test]
fn datagrams_follow_their_service() {
    on_a_host(|dir| async move {
        // Redirects and refusals share what the kernel allows to one client.
        run("sysctl", &["-q", "-w", "net.ipv4.conf.all.send_redirects=1"]);
        let network = Network::open(config(&dir, "u", 77)).await.unwrap();
        let [a, b, client] = [(); 3].map(|()| Pod::new());
        let ip_a = network.attach("a", &a.path(), &[]).await.unwrap().ip;
        let ip_b = network.attach("b", &b.path(), &[]).await.unwrap().ip;
        network.attach("client", &client.path(), &[]).await.unwrap();
        a.serve_udp("a", 8080);
        b.serve_udp("b", 8080);
        let udp = |endpoints: &[(Ipv4Addr, u16)]| ServicePort {
            protocol: Protocol::Udp,
            node_port: Some(30080),
            ..service(Ipv4Addr::new(10, 77, 128, 1), endpoints)
        };
        let vip = (Ipv4Addr::new(10, 77, 128, 1), 80);
        let (from_pod, from_host) = (client.udp_client(vip), udp_client(vip));
        let node_port = udp_client((Ipv4Addr::LOCALHOST, 30080));
        for endpoint in [Some((ip_a, "a")), Some((ip_b, "b")), None, Some((ip_a, "a"))] {
            let endpoints: Vec<_> = endpoint.iter().map(|(ip, _)| (*ip, 8080)).collect();
            network.set_services(vec![udp(&endpoints)]).await.unwrap();
            for socket in [&from_pod, &from_host, &node_port] {
                match endpoint {
                    Some((_, name)) => assert_eq!(ask(socket).unwrap(), name),
                    // Every time: a client that waits for an answer hangs.
                    None => (0..3).for_each(|_| assert!(refused(ask(socket)))),
                }
            }
        }
        // The last endpoint goes while nobody looks.
        drop(network);
        tokio::task::yield_now().await;
        let network = reopen(config(&dir, "u", 77)).await;
        assert_eq!(ask(&from_pod).unwrap(), "a");
        network.set_services(vec![udp(&[(ip_b, 8080)])]).await.unwrap();
        assert_eq!((ask(&from_pod).unwrap(), ask(&from_host).unwrap()), ("b".to_owned(), "b".to_owned()));
        purge(network, &dir, "u").await;
    });
}

#[test]
fn pods_do_not_reach_the_hosts_loopback() {
    on_a_host(|dir| async move {
        let network = Network::open(config(&dir, "l", 78)).await.unwrap();
        let pod = Pod::new();
        network.attach("p", &pod.path(), &[]).await.unwrap();
        let host = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7000)).unwrap();
        host.set_read_timeout(Some(TIMEOUT)).unwrap();
        pod.inside(|| {
            run("ip", &["addr", "del", "127.0.0.1/8", "dev", "lo"]);
            run("sysctl", &["-q", "-w", "net.ipv4.conf.eth0.route_localnet=1"]);
            run("ip", &["route", "add", "127.0.0.5/32", "via", "10.78.0.1"]);
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.send_to(b"forbidden", (Ipv4Addr::new(127, 0, 0, 5), 7000)).unwrap();
            socket.send_to(b"allowed", (Ipv4Addr::new(10, 78, 0, 1), 7000)).unwrap();
        })
        .join()
        .unwrap();
        let mut text = [0; 16];
        let (len, _) = host.recv_from(&mut text).unwrap();
        assert_eq!(&text[..len], b"allowed");
        purge(network, &dir, "l").await;
    });
}

#[test]
fn the_outside_sees_the_host() {
    on_a_host(|dir| async move {
        let network = Network::open(config(&dir, "two", 72)).await.unwrap();
        // Another machine on the host's own net.
        let outside = Pod::new();
        let outside_path = outside.path();
        let ns = outside_path.to_str().unwrap().replace("self", &std::process::id().to_string());
        run("ip", &["link", "add", "wan", "type", "veth", "peer", "name", "eth0", "netns", &ns]);
        run("ip", &["addr", "add", "192.0.2.1/24", "dev", "wan"]);
        run("ip", &["link", "set", "wan", "up"]);
        outside
            .inside(|| {
                run("ip", &["addr", "add", "192.0.2.9/24", "dev", "eth0"]);
                run("ip", &["link", "set", "eth0", "up"]);
            })
            .join()
            .unwrap();
        outside.serve("outside", 7);
        let pod = Pod::new();
        let port = HostPort { host_ip: None, host_port: 8888, protocol: Protocol::Tcp, container_port: 9 };
        // The same port once more, for datagrams to one address of the host.
        let datagrams = HostPort {
            host_ip: Some(Ipv4Addr::new(192, 0, 2, 1)),
            protocol: Protocol::Udp,
            container_port: 10,
            ..port.clone()
        };
        network.attach("p", &pod.path(), &[port.clone(), datagrams.clone()]).await.unwrap();
        pod.serve("pod", 9);
        pod.serve_udp("datagrams", 10);
        let far = Ipv4Addr::new(192, 0, 2, 9);
        assert_eq!(pod.get((far, 7)).unwrap(), "outside 192.0.2.1");
        // The host port leads in, also from the host itself, and the Pod sees who came.
        assert_eq!(get((Ipv4Addr::LOCALHOST, 8888)).unwrap(), "pod 10.72.0.1");
        assert!(refused(get((Ipv4Addr::new(127, 0, 0, 2), 8888))), "the host's own servers may be there");
        assert_eq!(outside.get((Ipv4Addr::new(192, 0, 2, 1), 8888)).unwrap(), "pod 192.0.2.9");
        assert_eq!(ask(&outside.udp_client((Ipv4Addr::new(192, 0, 2, 1), 8888))).unwrap(), "datagrams");
        assert!(refused(ask(&udp_client((Ipv4Addr::LOCALHOST, 8888)))));
        assert_eq!(network.attached()[0].host_ports, [port, datagrams]);
        // It is there again after a restart, and gone with the Pod.
        drop(network);
        tokio::task::yield_now().await;
        let network = reopen(config(&dir, "two", 72)).await;
        assert_eq!(outside.get((Ipv4Addr::new(192, 0, 2, 1), 8888)).unwrap(), "pod 192.0.2.9");
        network.reconcile(&BTreeSet::new()).await.unwrap();
        assert!(outside.get((Ipv4Addr::new(192, 0, 2, 1), 8888)).is_err());
        assert!(network.attached().is_empty());
        assert_eq!(run("ip", &["-o", "link"]).matches("skegv").count(), 0);
        purge(network, &dir, "two").await;
    });
}

/// Opens once the sockets of the one before are closed.
async fn reopen(config: NetworkConfig) -> Arc<Network> {
    tokio::time::timeout(TIMEOUT, async {
        loop {
            if let Ok(network) = Network::open(config.clone()).await {
                return network;
            }
        }
    })
    .await
    .unwrap()
}

#[test]
fn names_and_instances_side_by_side() {
    on_a_host(|dir| async move {
        let one = Network::open(config(&dir, "x", 73)).await.unwrap();
        let two = Network::open(config(&dir, "y", 74)).await.unwrap();
        let pod = Pod::new();
        let first = one.attach("p", &pod.path(), &[]).await.unwrap();
        // Again: the same address by the same link; in a new namespace: a new link.
        let links = || {
            let all = run("ip", &["-o", "link", "show", "type", "veth"]);
            all.lines().map(|line| line.split('@').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let link = links();
        assert_eq!(one.attach("p", &pod.path(), &[]).await.unwrap(), first);
        assert_eq!(links(), link);
        let pod = Pod::new();
        assert_eq!(one.attach("p", &pod.path(), &[]).await.unwrap(), first);
        assert!(links().len() == 1 && links() != link);
        one.set_records(Records {
            addresses: [("web.d.svc.cluster.local".to_owned(), vec![Ipv4Addr::new(10, 73, 128, 1)])].into(),
            ..Records::default()
        });
        let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in ["web", "d", "svc", "cluster", "local"] {
            query.push(label.len() as u8);
            query.extend_from_slice(label.as_bytes());
        }
        query.extend_from_slice(&[0, 0, 1, 0, 1]);
        // By the Service's address, which is translated, from the Pod and from the host.
        let ask = move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.connect((Ipv4Addr::new(10, 73, 128, 10), 53)).unwrap();
            socket.send(&query).unwrap();
            let mut answer = [0; 512];
            let len = socket.recv(&mut answer).unwrap();
            answer[len - 4..len].to_vec()
        };
        let from_pod = pod.inside(ask.clone());
        let from_host = tokio::task::spawn_blocking(ask);
        let from_pod = tokio::task::spawn_blocking(move || from_pod.join().unwrap());
        assert_eq!(from_host.await.unwrap(), [10, 73, 128, 1]);
        assert_eq!(from_pod.await.unwrap(), [10, 73, 128, 1]);
        purge(one, &dir, "x").await;
        assert!(run("nft", &["list", "tables"]).contains("skeg-y"));
        purge(two, &dir, "y").await;
        let overlapping =
            NetworkConfig { service_cidr: "10.75.0.0/16".parse().unwrap(), ..config(&dir, "z", 75) };
        assert!(Network::open(overlapping).await.is_err_and(|e| e.to_string().contains("overlap")));
    });
}

#[test]
fn figures() {
    on_a_host(|dir| async move {
        let network = Network::open(config(&dir, "f", 76)).await.unwrap();
        let pods: Vec<Pod> = (0..20).map(|_| Pod::new()).collect();
        let mut times = [vec![], vec![]];
        for (i, pod) in pods.iter().enumerate() {
            let started = tokio::time::Instant::now();
            network.attach(&i.to_string(), &pod.path(), &[]).await.unwrap();
            times[0].push(started.elapsed());
        }
        for i in 0..pods.len() {
            let started = tokio::time::Instant::now();
            network.detach(&i.to_string()).await.unwrap();
            times[1].push(started.elapsed());
        }
        let services: Vec<_> = (1..200)
            .map(|i| service(Ipv4Addr::new(10, 76, 128, i), &[(Ipv4Addr::new(10, 76, 0, 9), 80)]))
            .collect();
        let started = tokio::time::Instant::now();
        network.set_services(services.clone()).await.unwrap();
        let many = started.elapsed();
        let started = tokio::time::Instant::now();
        network.set_services(services[1..].to_vec()).await.unwrap();
        times.iter_mut().for_each(|t| t.sort());
        eprintln!(
            "attach p50 {:?} max {:?}, detach p50 {:?} max {:?}, 199 services {many:?}, one change {:?}",
            times[0][10],
            times[0][19],
            times[1][10],
            times[1][19],
            started.elapsed()
        );
        purge(network, &dir, "f").await;
    });
}
