//! Money that moves between ten accounts: whatever happens, the sum over all of them is 0 in every read.

use tokio_postgres::Client;

use crate::bench::Result;

pub const ACCOUNTS: i64 = 10;

/// What a read gives, as text: the sum over all accounts, and how many there are.
pub const READ: &str = "SELECT total::text, accounts::text FROM total";

/// Makes the table of transfers, the views over it, and a first transfer for each account, so that each has both sides, always. Their
/// ids are negative. `keyed`: a transfer can be changed by its id, and not be there twice.
pub async fn create(client: &Client, keyed: bool) -> Result<()> {
    let key = if keyed { " PRIMARY KEY" } else { "" };
    client
        .batch_execute(&format!(
            "CREATE TABLE transfers (id bigint{key}, from_account int, to_account int, amount bigint);
             CREATE MATERIALIZED VIEW balance AS {BALANCE};
             CREATE MATERIALIZED VIEW total AS SELECT sum(balance) AS total, count(*) AS accounts FROM balance"
        ))
        .await?;
    let first: Vec<String> = (0..ACCOUNTS).map(|a| format!("({}, {a}, {}, 1)", -1 - a, (a + 1) % ACCOUNTS)).collect();
    client.batch_execute(&format!("INSERT INTO transfers VALUES {}", first.join(", "))).await?;
    Ok(())
}

/// What the view `balance` stands for.
pub const BALANCE: &str = "SELECT c.account, credits - debits AS balance
    FROM (SELECT to_account AS account, sum(amount) AS credits FROM transfers GROUP BY to_account) c
    JOIN (SELECT from_account AS account, sum(amount) AS debits FROM transfers GROUP BY from_account) d
    ON c.account = d.account";

/// Whether a read is as it must be.
pub fn is_right(total: Option<&str>, accounts: Option<&str>) -> bool {
    total == Some("0") && accounts.and_then(|accounts| accounts.parse().ok()) == Some(ACCOUNTS)
}
