//! Objects of an S3 service, which `tests/s3.sh` starts, through the engine.

use std::io::{Read, Write};

use crate::harness::{Instance, ok, rows, run, scratch};

fn put(endpoint: &str, key: &str, body: &str) {
    let address = endpoint.replace("http://", "");
    let mut stream = std::net::TcpStream::connect(&address).unwrap();
    let length = body.len();
    write!(
        stream,
        "PUT /bucket/{key} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tests/s3.sh"]
async fn objects_feed_views_and_their_secret_is_never_shown() {
    let endpoint = std::env::var("MILLSTREAM_S3_ENDPOINT").expect("run tests/s3.sh");
    put(&endpoint, "engine/a.json", "{\"k\": 1}\n{\"k\": 2}\n");
    put(&endpoint, "engine/b.json", "{\"k\": 3}\nnonsense\n");
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut s = instance.session();
    let secret = "wJalrXUtnFEMI";
    let create = |name: &str, path: &str| {
        format!(
            "CREATE SOURCE {name} WITH (connector = 'file', path = 's3://bucket/{path}', s3.endpoint = '{endpoint}', s3.region = 'us-east-1', s3.access_key_id = 'someone', s3.secret_access_key = '{secret}', s3.allow_http = 'true') FORMAT PLAIN ENCODE JSON"
        )
    };
    ok(&mut s, &create("f", "engine/*.json")).await;
    ok(&mut s, "CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n, sum(k)::bigint AS s FROM f").await;
    instance.engine.wait_bounded().await.unwrap();
    assert_eq!(rows(&mut s, "SELECT * FROM v").await, [["3", "6"]]);
    assert_eq!(rows(&mut s, "SELECT split, line FROM \"f$errors\"").await, [["s3://bucket/engine/b.json", "2"]]);
    let mut shown = Vec::new();
    for query in [
        "SHOW CREATE SOURCE f",
        "SHOW SOURCES",
        "SELECT options::text FROM ms_catalog.sources",
        "SELECT ftoptions::text FROM pg_foreign_table",
    ] {
        shown.push(rows(&mut s, query).await.concat().join("\n"));
    }
    assert!(shown.iter().all(|text| !text.contains(secret)), "{shown:?}");
    assert!(shown[0].contains("********") && shown[0].contains("s3.endpoint"), "{}", shown[0]);
    let refused = run(&mut s, &create("g", "engine/none.json")).await.err().unwrap();
    assert_eq!(refused.state().code(), "58P01");
    assert!(!format!("{refused:?}").contains(secret), "{refused:?}");
    instance.close().await;
    // After a restart the source has its secret still.
    let instance = Instance::open(folder.path(), 1, 8192);
    let mut s = instance.session();
    instance.engine.wait_bounded().await.unwrap();
    ok(&mut s, "SELECT * FROM v").await;
    instance.engine.wait_bounded().await.unwrap();
    assert_eq!(rows(&mut s, "SELECT * FROM v").await, [["3", "6"]]);
    instance.close().await;
}
