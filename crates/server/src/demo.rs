//! `millstream demo`: a server, a growing file of orders, views on views, shown live.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coord::Time;
use flow::{Error, Result, SqlState};
use tokio::sync::watch;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::client::{connect, server_error, table};
use crate::config::Config;
use crate::{DemoArgs, ServerArgs};

/// How often the screen is drawn.
const REFRESH: Duration = Duration::from_millis(500);
/// Orders that are in the file before the first screen.
const HISTORY: u64 = 2_000;

/// What the demo declares, in order. `{path}` is the file of orders.
const SCRIPT: &[&str] = &[
    "CREATE SOURCE orders (
         id bigint, placed_at timestamp, customer text, city text, product text, quantity int, price numeric(10,2)
     ) WITH (connector = 'file', path = '{path}', follow = 'true') FORMAT PLAIN ENCODE JSON",
    "CREATE TABLE products (product text PRIMARY KEY, category text NOT NULL)",
    "INSERT INTO products VALUES ('espresso', 'coffee'), ('filter', 'coffee'), ('cappuccino', 'coffee'),
         ('croissant', 'bakery'), ('bagel', 'bakery'), ('green tea', 'tea'), ('chai', 'tea')",
    "CREATE MATERIALIZED VIEW sales AS
         SELECT o.id, o.city, o.customer, p.category, o.quantity * o.price AS amount
         FROM orders o JOIN products p ON o.product = p.product",
    "CREATE MATERIALIZED VIEW city_revenue AS
         SELECT city, count(*) AS orders, sum(amount) AS revenue FROM sales GROUP BY city",
    "CREATE MATERIALIZED VIEW best_customers AS
         SELECT city, customer, spent FROM (
             SELECT city, customer, spent, row_number() OVER (PARTITION BY city ORDER BY spent DESC) AS place
             FROM (SELECT city, customer, sum(amount) AS spent FROM sales GROUP BY city, customer) AS spending
         ) AS ranked WHERE place = 1",
    "CREATE MATERIALIZED VIEW total AS SELECT sum(orders) AS orders, sum(revenue) AS revenue FROM city_revenue",
];

/// What a screen shows: every read is one consistent epoch, so the total is always the sum of the cities.
const SCREEN: &str = "SELECT c.city, c.orders, c.revenue, b.customer AS best_customer, b.spent
     FROM city_revenue c JOIN best_customers b ON b.city = c.city
     UNION ALL SELECT 'TOTAL', orders, revenue, '', NULL FROM total
     ORDER BY revenue DESC";

/// Runs the demo.
pub fn run(args: &DemoArgs) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("millstream-demo-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| failed("create", &folder, &e))?;
    let flags = ServerArgs {
        data_dir: Some(folder.join("data")),
        pg_addr: Some(args.pg_addr.clone()),
        http_addr: Some(args.http_addr.clone()),
        ..ServerArgs::default()
    };
    let config = Config::load(&flags)?;
    crate::logging::install("text", "warn");
    let outcome = crate::serve::runtime()?.block_on(async {
        let mut signal = crate::serve::signals()?;
        let (stop, stopped) = watch::channel(false);
        let addr = config.pg_addr;
        let server = tokio::spawn(crate::serve::serve(config, stopped));
        let shown = tokio::select! {
            shown = show(args, &folder, addr) => shown,
            _ = signal.wait_for(|s| *s) => Ok(()),
        };
        stop.send_replace(true);
        match server.await {
            Ok(Err(error)) => Err(error),
            Ok(Ok(())) => shown,
            Err(e) => Err(Error::internal(format!("server: {e}"))),
        }
    });
    // The demo's data is not meant to stay.
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

fn failed(action: &str, path: &Path, e: &std::io::Error) -> Error {
    Error::new(SqlState::IoError, format!("cannot {action} \"{}\": {e}", path.display()))
}

async fn show(args: &DemoArgs, folder: &Path, addr: std::net::SocketAddr) -> Result<()> {
    let path = folder.join("orders.ndjson");
    let mut orders = Orders::create(&path)?;
    orders.write(HISTORY)?;
    let client = ready_client(addr).await?;
    for statement in SCRIPT {
        let statement = statement.replace("{path}", &path.display().to_string());
        client.batch_execute(&statement).await.map_err(|e| server_error(&e))?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::task::spawn_blocking({
        let (stop, rate) = (Arc::clone(&stop), args.rate);
        move || follow(&mut orders, rate, &stop)
    });
    // Also when a signal ends the demo while it shows.
    let stopping = Stop(Arc::clone(&stop));
    let shown = screens(args, &client, addr, &path).await;
    drop(stopping);
    writer.await.map_err(|e| Error::internal(format!("writer: {e}")))??;
    shown
}

/// Stops the writer when the demo ends, however it ends.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Connects once the server listens.
async fn ready_client(addr: std::net::SocketAddr) -> Result<Client> {
    const TRIES: usize = 50;
    let mut last = None;
    for _ in 0..TRIES {
        match connect(&addr.ip().to_string(), addr.port(), "millstream", "dev").await {
            Ok(client) => return Ok(client),
            Err(e) => last = Some(e),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(last.unwrap_or_else(|| Error::internal("no connection")))
}

async fn screens(args: &DemoArgs, client: &Client, addr: std::net::SocketAddr, path: &Path) -> Result<()> {
    let terminal = std::io::stdout().is_terminal();
    let time = Time::system();
    let start = time.now_us();
    loop {
        let began = time.now_us();
        let messages = client.simple_query(SCREEN).await.map_err(|e| server_error(&e))?;
        let took_us = time.now_us() - began;
        let mut header = Vec::new();
        let mut rows = Vec::new();
        for message in messages {
            match message {
                SimpleQueryMessage::RowDescription(columns) => {
                    header = columns.iter().map(|c| c.name().to_string()).collect();
                }
                SimpleQueryMessage::Row(row) => {
                    rows.push((0..row.len()).map(|i| row.get(i).unwrap_or_default().to_string()).collect());
                }
                _ => {}
            }
        }
        // Home and clear: the table is drawn over the last one.
        let clear = if terminal { "\x1b[H\x1b[2J" } else { "" };
        let screen = format!(
            "{clear}Millstream demo: orders arrive in {} ({} a second)\n\n{}\n\
             read in {:.1} ms, at one epoch: TOTAL is always the sum of the cities\n\
             connect:  psql -h {} -p {} -U millstream dev\n\
             try:      SELECT * FROM city_revenue WHERE city = 'Lisbon';\n          \
             CREATE MATERIALIZED VIEW big AS SELECT * FROM sales WHERE amount > 30;\n\
             stop:     Ctrl-C\n\n",
            path.display(),
            args.rate,
            table(&header, &rows),
            took_us as f64 / 1000.0,
            addr.ip(),
            addr.port()
        );
        let mut out = std::io::stdout().lock();
        match out.write_all(screen.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => {}
            // Nobody looks any more.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            Err(e) => return Err(Error::new(SqlState::IoError, format!("cannot show the table: {e}"))),
        }
        drop(out);
        if args.seconds > 0 && time.now_us() - start >= args.seconds as i64 * 1_000_000 {
            return Ok(());
        }
        tokio::time::sleep(REFRESH).await;
    }
}

/// Appends orders at a steady rate until told to stop.
fn follow(orders: &mut Orders, rate: u64, stop: &AtomicBool) -> Result<()> {
    const STEPS_A_SECOND: u64 = 20;
    let mut owed = 0;
    while !stop.load(Ordering::Relaxed) {
        owed += rate;
        orders.write(owed / STEPS_A_SECOND)?;
        owed %= STEPS_A_SECOND;
        std::thread::sleep(Duration::from_millis(1000 / STEPS_A_SECOND));
    }
    Ok(())
}

/// Writes made-up orders, the same ones in every run.
struct Orders {
    path: PathBuf,
    file: File,
    next: u64,
    random: u64,
}

const CUSTOMERS: &[&str] = &["Ada", "Bela", "Chen", "Dora", "Emil", "Fatima", "Goro", "Hana", "Ines", "Jan"];
const CITIES: &[&str] = &["Lisbon", "Kyoto", "Oslo", "Quito", "Accra"];
const PRODUCTS: &[(&str, u64)] = &[
    ("espresso", 220),
    ("filter", 280),
    ("cappuccino", 350),
    ("croissant", 260),
    ("bagel", 310),
    ("green tea", 240),
    ("chai", 330),
];

impl Orders {
    fn create(path: &Path) -> Result<Orders> {
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(|e| failed("create", path, &e))?;
        Ok(Orders { path: path.to_path_buf(), file, next: 1, random: 0x9e37_79b9_7f4a_7c15 })
    }

    /// A number below `n`, by xorshift (Marsaglia 2003): repeatable, and good enough for a picture.
    fn below(&mut self, n: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % n as u64) as usize
    }

    fn write(&mut self, count: u64) -> Result<()> {
        let mut text = String::new();
        for _ in 0..count {
            let id = self.next;
            self.next += 1;
            let customer = CUSTOMERS[self.below(CUSTOMERS.len())];
            let city = CITIES[self.below(CITIES.len())];
            let (product, cents) = PRODUCTS[self.below(PRODUCTS.len())];
            let quantity = 1 + self.below(4);
            let second = id % 60;
            let (minute, hour) = (id / 60 % 60, id / 3600 % 24);
            text.push_str(&format!(
                "{{\"id\":{id},\"placed_at\":\"2026-06-01 {hour:02}:{minute:02}:{second:02}\",\"customer\":\"{customer}\",\
                 \"city\":\"{city}\",\"product\":\"{product}\",\"quantity\":{quantity},\"price\":{}.{:02}}}\n",
                cents / 100,
                cents % 100
            ));
        }
        self.file.write_all(text.as_bytes()).map_err(|e| failed("append to", &self.path, &e))
    }
}
