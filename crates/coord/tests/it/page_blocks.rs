//! The blocks between three backquotes of a page of documentation. Also read by the tests of the server.

/// What stands between two lines of three backquotes.
pub struct Block {
    pub line: usize,
    pub language: String,
    /// What stands behind it.
    pub word: String,
    pub text: String,
}

/// The blocks of a page, in order.
pub fn blocks(page: &str) -> Vec<Block> {
    let (mut blocks, mut open): (Vec<Block>, Option<Block>) = (Vec::new(), None);
    for (n, line) in page.lines().enumerate() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(info), None) => {
                let (language, word) = info.split_once(' ').unwrap_or((info, ""));
                open = Some(Block { line: n + 1, language: language.into(), word: word.into(), text: String::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block without an end");
    blocks
}
