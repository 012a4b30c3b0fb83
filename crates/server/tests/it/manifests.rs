//! What `docker` holds: every setting, flag, port and probe that the compose files and the manifests name is one of the program's, and
//! what their containers run works, as processes on this machine, with the commands and variables that are read from them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use figment::Figment;
use figment::providers::{Format, Yaml};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;
use tokio_postgres::{Client, Config, NoTls};

use crate::standby::free_port;

const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(50);
/// Variables of the environment that are not settings of Millstream: those of the store's client.
const OF_THE_STORE: [&str; 6] =
    ["AWS_ENDPOINT", "AWS_ALLOW_HTTP", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
/// Settings that say where a process listens.
const LISTENS: [&str; 5] = [
    "MILLSTREAM_PG_ADDR",
    "MILLSTREAM_HTTP_ADDR",
    "MILLSTREAM_HISTORY_ADDR",
    "MILLSTREAM_CLUSTER_ADDR",
    "MILLSTREAM_WORKER_ADDR",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The documents of a YAML file.
fn documents(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut found = Vec::new();
    for part in text.split("\n---\n") {
        let document = Figment::from(Yaml::string(part)).extract::<Value>();
        found.push(document.unwrap_or_else(|e| panic!("{}: {e}\n{part}", path.display())));
    }
    found
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn map(value: &Value) -> BTreeMap<String, Value> {
    value.as_object().map(|o| o.iter().map(|(k, v)| (k.clone(), v.clone())).collect()).unwrap_or_default()
}

/// What one container runs.
#[derive(Clone, Debug)]
struct Container {
    /// By which others find it.
    host: String,
    args: Vec<String>,
    environment: BTreeMap<String, String>,
}

/// Names that the environment of a process may give to settings, from the file that lists every key.
fn settings() -> BTreeSet<String> {
    let keys = documents(&root().join("conf/millstream.yaml")).remove(0);
    keys.as_object().unwrap().keys().map(|key| format!("MILLSTREAM_{}", key.to_uppercase())).collect()
}

/// The setting is known, and the program takes the arguments.
fn check(container: &Container) {
    let known = settings();
    for name in container.environment.keys() {
        assert!(known.contains(name) || OF_THE_STORE.contains(&name.as_str()), "{}: no setting {name}", container.host);
    }
    let asked = Command::new(env!("CARGO_BIN_EXE_millstream")).args(&container.args).arg("--help").output().unwrap();
    assert!(asked.status.success(), "{}: {}", container.host, String::from_utf8_lossy(&asked.stderr));
}

/// The containers of ours in a compose file.
fn composed(path: &Path) -> Vec<Container> {
    let file = documents(path).remove(0);
    let mut found = Vec::new();
    for (name, service) in map(&file["services"]) {
        let ours = service["image"].as_str() == Some("millstream") || service.get("build").is_some();
        if !ours {
            continue;
        }
        let environment = map(&service["environment"]).iter().map(|(k, v)| (k.clone(), text(v))).collect();
        let args = list(&service["command"]).iter().map(text).collect();
        found.push(Container { host: name, args, environment });
    }
    found
}

/// All objects of the manifests.
fn objects() -> Vec<Value> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(root().join("docker/k8s")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().filter(|file| !file.ends_with("kustomization.yaml")).flat_map(|file| documents(file)).collect()
}

fn named<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

fn is_workload(object: &Value) -> bool {
    ["StatefulSet", "Deployment", "Job"].iter().any(|kind| object["kind"] == *kind)
}

/// The variables that a container gets.
fn environment(objects: &[Value], container: &Value) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for from in list(&container["envFrom"]) {
        let (kind, key, values) = match from.get("configMapRef") {
            Some(_) => ("ConfigMap", "configMapRef", "data"),
            None => ("Secret", "secretRef", "stringData"),
        };
        let object = named(objects, kind, from[key]["name"].as_str().unwrap());
        found.extend(map(&object[values]).iter().map(|(k, v)| (k.clone(), text(v))));
    }
    found.extend(list(&container["env"]).iter().map(|e| (text(&e["name"]), text(&e["value"]))));
    found
}

/// The containers of a workload, as many as it has replicas.
fn deployed(objects: &[Value], workload: &Value) -> Vec<Container> {
    let replicas = workload["spec"]["replicas"].as_u64().unwrap_or(1);
    let mut found = Vec::new();
    for n in 0..replicas {
        for container in list(&workload["spec"]["template"]["spec"]["containers"]) {
            found.push(Container {
                host: format!("{}-{n}", text(&workload["metadata"]["name"])),
                args: list(&container["args"]).iter().map(text).collect(),
                environment: environment(objects, &container),
            });
        }
    }
    found
}

fn port_of(addr: &str) -> u64 {
    addr.parse::<SocketAddr>().unwrap_or_else(|e| panic!("{addr}: {e}")).port().into()
}

/// The setting behind which this kind of process answers over HTTP.
fn http_of(container: &Container) -> u64 {
    let name = if container.args[0] == "history" { "MILLSTREAM_HISTORY_ADDR" } else { "MILLSTREAM_HTTP_ADDR" };
    port_of(&container.environment[name])
}

#[test]
fn compose_files_name_what_there_is() {
    for (name, least) in [("server.yaml", 1), ("compose.yaml", 6)] {
        let path = root().join("docker").join(name);
        let containers = composed(&path);
        assert!(containers.len() >= least, "{name}: {containers:?}");
        for container in containers.iter().filter(|container| !container.args.is_empty()) {
            check(container);
        }
        // Published ports are those that somebody listens on.
        let file = documents(&path).remove(0);
        for (service, options) in map(&file["services"]) {
            let listens: Vec<u64> =
                LISTENS.iter().filter_map(|name| Some(port_of(options["environment"][*name].as_str()?))).collect();
            for port in list(&options["ports"]).iter().filter(|_| !listens.is_empty()) {
                let inside = text(port).rsplit(':').next().unwrap().parse::<u64>().unwrap();
                assert!(listens.contains(&inside), "{name}: {service} does not listen on {inside}");
            }
            for needed in list(&options["depends_on"]) {
                assert!(file["services"].get(text(&needed)).is_some(), "{name}: no service {needed}");
            }
        }
    }
    let asked = std::fs::read_to_string(root().join("docker/Dockerfile")).unwrap();
    assert!(
        asked.contains("HEALTHCHECK") && asked.contains("[\"millstream\", \"health\"]") && asked.contains("USER 65532")
    );
}

#[test]
fn manifests_name_what_there_is() {
    let objects = objects();
    assert!(objects.len() >= 10, "{}", objects.len());
    for object in &objects {
        for key in ["apiVersion", "kind"] {
            assert!(object[key].is_string(), "no {key} in {object}");
        }
        assert!(object["metadata"]["name"].is_string(), "{object}");
        assert!(object["kind"] == "Namespace" || object["metadata"]["namespace"] == "millstream", "{object}");
    }
    // The list of files is whole, but for the example.
    let kustomization = documents(&root().join("docker/k8s/kustomization.yaml")).remove(0);
    let listed: BTreeSet<String> = list(&kustomization["resources"]).iter().map(text).collect();
    let files = std::fs::read_dir(root().join("docker/k8s")).unwrap();
    let mut there: BTreeSet<String> = files.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    there.retain(|name| !["kustomization.yaml", "application.yaml"].contains(&name.as_str()));
    assert_eq!(listed, there);

    for workload in objects.iter().filter(|object| is_workload(object)) {
        let (name, pod) = (text(&workload["metadata"]["name"]), &workload["spec"]["template"]);
        for container in deployed(&objects, workload) {
            check(&container);
        }
        if workload["kind"] != "Job" {
            let wanted = map(&workload["spec"]["selector"]["matchLabels"]);
            assert_eq!(wanted, map(&pod["metadata"]["labels"]), "{name}");
        }
        if let Some(service) = workload["spec"].get("serviceName") {
            assert_eq!(named(&objects, "Service", service.as_str().unwrap())["spec"]["clusterIP"], "None", "{name}");
        }
        // Nobody is killed in the middle of a last checkpoint, and nobody is root.
        let role = text(&pod["metadata"]["labels"]["role"]);
        let grace = pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(
            grace >= if ["coordinator", "application"].contains(&role.as_str()) { 30 } else { 10 },
            "{name}: {grace}"
        );
        assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"], true, "{name}");
        let volumes: BTreeSet<String> = list(&pod["spec"]["volumes"]).iter().map(|v| text(&v["name"])).collect();
        for (container, runs) in list(&pod["spec"]["containers"]).iter().zip(deployed(&objects, workload)) {
            let ports: BTreeMap<String, u64> = list(&container["ports"])
                .iter()
                .map(|p| (text(&p["name"]), p["containerPort"].as_u64().unwrap()))
                .collect();
            let listens: BTreeSet<u64> =
                LISTENS.iter().filter_map(|name| Some(port_of(runs.environment.get(*name)?))).collect();
            assert!(ports.values().all(|port| listens.contains(port)), "{name}: {ports:?} of {listens:?}");
            for mount in list(&container["volumeMounts"]) {
                assert!(volumes.contains(&text(&mount["name"])), "{name}: {mount}");
            }
            // Life is asked for at /live, which a standby passes; readiness at /health, which it does not.
            for (probe, path) in [("startupProbe", "/live"), ("livenessProbe", "/live"), ("readinessProbe", "/health")]
            {
                if let Some(probe) = container.get(probe) {
                    assert_eq!(probe["httpGet"]["path"], path, "{name}");
                    assert_eq!(ports[&text(&probe["httpGet"]["port"])], http_of(&runs), "{name}");
                }
            }
            let answers = ["coordinator", "history"].contains(&runs.args[0].as_str());
            assert_eq!(container.get("readinessProbe").is_some(), answers, "{name}");
            assert_eq!(container.get("livenessProbe").is_some(), runs.args[0] != "worker", "{name}");
        }
    }
    // Behind each Service there are pods, which have its ports.
    for service in objects.iter().filter(|object| object["kind"] == "Service") {
        let wanted = map(&service["spec"]["selector"]);
        let is_behind = |o: &&Value| {
            let labels = map(&o["spec"]["template"]["metadata"]["labels"]);
            is_workload(o) && wanted.iter().all(|(k, v)| labels.get(k) == Some(v))
        };
        let behind: Vec<&Value> = objects.iter().filter(is_behind).collect();
        assert_eq!(behind.len(), 1, "{service}");
        let ports: Vec<Value> = list(&behind[0]["spec"]["template"]["spec"]["containers"])
            .iter()
            .flat_map(|container| list(&container["ports"]))
            .collect();
        for port in list(&service["spec"]["ports"]) {
            let there = ports.iter().find(|p| p["name"] == port["targetPort"]);
            let there = there.unwrap_or_else(|| panic!("{service}: no port {port}"));
            assert_eq!(there["containerPort"], port["port"]);
        }
    }
    // The leader alone is behind the Service of the clients; workers find the coordinators ready or not.
    let clients = named(&objects, "Service", "millstream");
    assert!(clients["spec"].get("publishNotReadyAddresses").is_none());
    assert_eq!(named(&objects, "Service", "coordinators")["spec"]["publishNotReadyAddresses"], true);
    // The names in the addresses are those of the pods.
    let config = map(&named(&objects, "ConfigMap", "millstream")["data"]);
    let set = named(&objects, "StatefulSet", "coordinator");
    let expected: Vec<String> = (0..set["spec"]["replicas"].as_u64().unwrap())
        .map(|n| format!("coordinator-{n}.coordinators:{}", port_of(&text(&config["MILLSTREAM_CLUSTER_ADDR"]))))
        .collect();
    assert_eq!(text(&config["MILLSTREAM_COORDINATOR_ADDR"]), expected.join(","));
    let workers = named(&objects, "StatefulSet", "worker")["spec"]["replicas"].as_u64().unwrap();
    assert!(text(&config["MILLSTREAM_CLUSTER_WORKERS"]).parse::<u64>().unwrap() <= workers);
    // A secret that nobody has filled in opens nothing.
    assert!(map(&named(&objects, "Secret", "millstream")["stringData"]).values().all(|value| value == ""));
    for budget in objects.iter().filter(|object| object["kind"] == "PodDisruptionBudget") {
        let wanted = map(&budget["spec"]["selector"]["matchLabels"]);
        let covers = |o: &&Value| is_workload(o) && map(&o["spec"]["template"]["metadata"]["labels"]) == wanted;
        let covered: Vec<&Value> = objects.iter().filter(covers).collect();
        assert_eq!(covered.len(), 1, "{budget}");
        // What is never ready has none: it would forbid every eviction.
        assert!(covered[0]["metadata"]["name"] != "coordinator");
    }
}

/// Containers as processes of this machine: each with free ports, its own folder, and the others under loopback.
struct Deployment {
    processes: BTreeMap<String, Child>,
    /// Where each answers clients, and HTTP.
    pg: BTreeMap<String, SocketAddr>,
    http: BTreeMap<String, SocketAddr>,
    folder: TempDir,
}

impl Deployment {
    /// `url`: where checkpoints are kept; a folder if none.
    fn start(containers: &[Container], url: Option<&str>) -> Deployment {
        let folder = tempfile::tempdir().unwrap();
        let own_url = format!("file://{}", folder.path().join("store").display());
        let (mut pg, mut http, mut cluster) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for container in containers.iter().filter(|container| container.args[0] == "coordinator") {
            cluster.insert(container.host.clone(), free_port());
        }
        let mut deployment =
            Deployment { processes: BTreeMap::new(), pg: BTreeMap::new(), http: BTreeMap::new(), folder };
        for container in containers {
            let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
            command.args(&container.args).stdin(Stdio::null()).stdout(Stdio::null());
            let data = deployment.folder.path().join(&container.host);
            std::fs::create_dir(&data).unwrap();
            command.current_dir(&data);
            for (name, value) in &container.environment {
                let value = match name.as_str() {
                    "MILLSTREAM_DATA_DIR" => data.display().to_string(),
                    "MILLSTREAM_CHECKPOINT_URL" => url.unwrap_or(&own_url).to_string(),
                    "MILLSTREAM_CLUSTER_TOKEN" => "a token of the test".to_string(),
                    "MILLSTREAM_CLUSTER_ADDR" => match cluster.get(&container.host) {
                        Some(addr) => addr.to_string(),
                        None => continue,
                    },
                    "MILLSTREAM_PG_ADDR" => pg.entry(container.host.clone()).or_insert_with(free_port).to_string(),
                    "MILLSTREAM_HISTORY_ADDR" if container.args[0] != "history" => continue,
                    "MILLSTREAM_HTTP_ADDR" if container.args[0] == "history" => continue,
                    "MILLSTREAM_HTTP_ADDR" | "MILLSTREAM_HISTORY_ADDR" => {
                        http.entry(container.host.clone()).or_insert_with(free_port).to_string()
                    }
                    "MILLSTREAM_WORKER_ADDR" => "127.0.0.1:0".to_string(),
                    "MILLSTREAM_COORDINATOR_ADDR" => {
                        let here = |address: &str| {
                            let (host, _) = address.split_once(':').unwrap();
                            // A pod is found by its name and that of its Service.
                            cluster[host.split('.').next().unwrap()].to_string()
                        };
                        value.split(',').map(here).collect::<Vec<_>>().join(",")
                    }
                    // Those of the caller, if there is a bucket.
                    name if OF_THE_STORE.contains(&name) => continue,
                    _ => value.clone(),
                };
                command.env(name, value);
            }
            if let Ok(endpoint) = std::env::var("MILLSTREAM_S3_ENDPOINT") {
                command.env("AWS_ENDPOINT", endpoint).env("AWS_ALLOW_HTTP", "true");
            }
            // The containers have memory of their own; here they share a machine.
            command.env("MILLSTREAM_MEMORY_LIMIT", "256MiB").env_remove("MILLSTREAM_S3_ENDPOINT");
            let log = std::fs::File::create(deployment.log_of(&container.host)).unwrap();
            deployment.processes.insert(container.host.clone(), command.stderr(log).spawn().unwrap());
        }
        (deployment.pg, deployment.http) = (pg, http);
        deployment
    }

    fn hosts(&self, role: &str) -> Vec<String> {
        self.processes.keys().filter(|host| host.starts_with(role)).cloned().collect()
    }

    /// Status and body of a path, as a probe asks; `None`: nobody answers yet.
    fn ask(&self, host: &str, path: &str) -> Option<(u16, String)> {
        use std::io::{Read, Write};

        let mut stream = std::net::TcpStream::connect(self.http[host]).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_string()))
    }

    fn log(&self, host: &str) -> String {
        std::fs::read_to_string(self.log_of(host)).unwrap_or_default()
    }

    fn log_of(&self, host: &str) -> PathBuf {
        self.folder.path().join(format!("{host}.log"))
    }

    /// The one that is ready, as a Service finds it, once there is one.
    async fn leader(&mut self) -> String {
        let begun = Instant::now();
        loop {
            for host in self.hosts("coordinator") {
                if self.processes.get_mut(&host).unwrap().try_wait().unwrap().is_none()
                    && self.ask(&host, "/health").is_some_and(|(status, _)| status == 200)
                {
                    return host;
                }
            }
            let logs: String = self.processes.keys().map(|host| format!("== {host}\n{}", self.log(host))).collect();
            assert!(begun.elapsed() < PATIENCE, "nobody leads\n{logs}");
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn client(&self, host: &str) -> Client {
        let addr = self.pg[host];
        let mut config = Config::new();
        config.host(addr.ip().to_string()).port(addr.port()).user("tester").dbname("dev");
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    fn terminate(&self, host: &str) {
        let id = self.processes[host].id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    }

    async fn ends(&mut self, host: &str) -> bool {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.processes.get_mut(host).unwrap().try_wait().unwrap() {
                return status.success();
            }
            assert!(begun.elapsed() < PATIENCE, "{host} does not end\n{}", self.log(host));
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        for process in self.processes.values_mut() {
            // Both fail only if it has ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A cluster of these containers works, its leader can be drained, and its probes say what they are there for.
async fn works(containers: &[Container], url: Option<&str>) {
    let mut deployment = Deployment::start(containers, url);
    let leader = deployment.leader().await;
    let client = deployment.client(&leader).await;
    let workers = client.query("SELECT id FROM ms_catalog.workers WHERE state = 'running'", &[]).await.unwrap();
    assert_eq!(workers.len(), deployment.hosts("worker").len());
    client
        .batch_execute(
            "CREATE TABLE t (k int PRIMARY KEY, v int);
             CREATE MATERIALIZED VIEW sums AS SELECT k % 3 AS g, sum(v) AS s FROM t GROUP BY k % 3;
             CREATE MATERIALIZED VIEW gone AS SELECT k FROM t;
             INSERT INTO t SELECT n::int, n::int FROM generate_series(1, 1000) AS g (n)",
        )
        .await
        .unwrap();
    // On its own: what one query string makes and drops is never a job.
    client.batch_execute("DROP MATERIALIZED VIEW gone").await.unwrap();
    // The others are alive, and not ready.
    let standbys: Vec<String> = deployment.hosts("coordinator").into_iter().filter(|host| *host != leader).collect();
    assert!(!standbys.is_empty());
    for standby in &standbys {
        let begun = Instant::now();
        while deployment.ask(standby, "/live").is_none_or(|(status, _)| status != 200) {
            assert!(begun.elapsed() < PATIENCE, "{}", deployment.log(standby));
            tokio::time::sleep(LOOK).await;
        }
        let (status, body) = deployment.ask(standby, "/health").unwrap();
        assert_eq!(status, 503, "{body}");
    }
    assert_eq!(deployment.ask(&leader, "/live").unwrap().0, 200);
    // Drained: it ends in order, and another one is ready.
    deployment.terminate(&leader);
    assert!(deployment.ends(&leader).await, "{}", deployment.log(&leader));
    let next = deployment.leader().await;
    assert_ne!(next, leader);
    let client = deployment.client(&next).await;
    let sums = client.query("SELECT s::text FROM sums ORDER BY g", &[]).await.unwrap();
    let sums: Vec<String> = sums.iter().map(|row| row.get(0)).collect();
    assert_eq!(sums, ["166833", "167167", "166500"]);
    // A worker ends in order too.
    let worker = deployment.hosts("worker").pop().unwrap();
    deployment.terminate(&worker);
    assert!(deployment.ends(&worker).await, "{}", deployment.log(&worker));
    // Jobs that have ended are in the archive.
    let history = deployment.hosts("history").pop().unwrap();
    for path in ["/live", "/health"] {
        assert_eq!(deployment.ask(&history, path).unwrap().0, 200, "{}", deployment.log(&history));
    }
    let begun = Instant::now();
    while !deployment.ask(&history, "/api/jobs").unwrap().1.contains("public.gone") {
        assert!(begun.elapsed() < PATIENCE, "{:?}", deployment.ask(&history, "/api/jobs"));
        tokio::time::sleep(LOOK).await;
    }
}

fn of_the_cluster() -> Vec<Container> {
    let objects = objects();
    let workloads = objects.iter().filter(|object| is_workload(object) && object["kind"] != "Job");
    workloads.flat_map(|workload| deployed(&objects, workload)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_compose_file_runs_works() {
    works(&composed(&root().join("docker/compose.yaml")), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_manifests_run_works() {
    works(&of_the_cluster(), None).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tests/s3.sh"]
async fn what_the_manifests_run_works_in_a_bucket() {
    works(&of_the_cluster(), Some("s3://bucket/manifests")).await;
}

/// The Job's script runs to its end, with the arguments of its container.
#[test]
fn what_the_manifest_of_an_application_runs_works() {
    let objects = objects();
    let job = deployed(&objects, named(&objects, "Job", "application")).remove(0);
    let folder = tempfile::tempdir().unwrap();
    let script = text(&named(&objects, "ConfigMap", "application")["data"]["application.sql"]);
    std::fs::write(folder.path().join("application.sql"), script).unwrap();
    let url = format!("file://{}", folder.path().join("store").display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    for arg in &job.args {
        let here = folder.path().display().to_string();
        command.arg(match arg.as_str() {
            "127.0.0.1:7490" => "127.0.0.1:0".to_string(),
            arg if arg.starts_with("s3://") => url.clone(),
            arg => arg.replace("/application/", &format!("{here}/")).replace("/data/", &format!("{here}/data-")),
        });
    }
    for (name, value) in &job.environment {
        let value = match name.as_str() {
            name if name.starts_with("AWS_") || name == "MILLSTREAM_CHECKPOINT_URL" => continue,
            name if LISTENS.contains(&name) => "127.0.0.1:0".to_string(),
            "MILLSTREAM_CLUSTER_TOKEN" => "a token of the test".to_string(),
            _ => value.clone(),
        };
        command.env(name, value);
    }
    let ended = command.env("MILLSTREAM_MEMORY_LIMIT", "256MiB").current_dir(folder.path()).output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success(), "{told}");
    let out = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(out.contains("| 0 | 499950000 |") && out.contains("(10 rows)"), "{out}");
}
