//! Errors in the words of SQL: every refusal carries an SQLSTATE and, where known, a position, a detail and a hint.

use serde::{Deserialize, Serialize};
use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! sqlstates {
    ($($(#[$doc:meta])* $name:ident = $code:literal),* $(,)?) => {
        /// The SQLSTATE classes that Millstream answers with; meanings as in PostgreSQL.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum SqlState { $($(#[$doc])* $name),* }

        impl SqlState {
            /// The five characters that go over the wire.
            pub fn code(self) -> &'static str {
                match self { $(SqlState::$name => $code),* }
            }

            /// The state with this five-character code, if Millstream uses it.
            pub fn from_code(code: &str) -> Option<SqlState> {
                match code { $($code => Some(SqlState::$name),)* _ => None }
            }
        }
    };
}

sqlstates! {
    ConnectionFailure = "08006",
    ProtocolViolation = "08P01",
    FeatureNotSupported = "0A000",
    CardinalityViolation = "21000",
    DataException = "22000",
    StringDataRightTruncation = "22001",
    NumericValueOutOfRange = "22003",
    NullValueNotAllowed = "22004",
    InvalidDatetimeFormat = "22007",
    DatetimeFieldOverflow = "22008",
    SubstringError = "22011",
    DivisionByZero = "22012",
    IntervalFieldOverflow = "22015",
    InvalidEscapeCharacter = "22019",
    InvalidRegularExpression = "2201B",
    InvalidArgumentForLogarithm = "2201E",
    InvalidArgumentForPowerFunction = "2201F",
    InvalidArgumentForWidthBucket = "2201G",
    InvalidRowCountInLimit = "2201W",
    InvalidRowCountInOffset = "2201X",
    InvalidParameterValue = "22023",
    InvalidEscapeSequence = "22025",
    ArraySubscriptError = "2202E",
    CharacterNotInRepertoire = "22021",
    InvalidTextRepresentation = "22P02",
    InvalidBinaryRepresentation = "22P03",
    BadCopyFileFormat = "22P04",
    NotNullViolation = "23502",
    ForeignKeyViolation = "23503",
    UniqueViolation = "23505",
    CheckViolation = "23514",
    InvalidCursorState = "24000",
    InvalidSavepoint = "3B001",
    InvalidTransactionState = "25000",
    ActiveSqlTransaction = "25001",
    ReadOnlyTransaction = "25006",
    NoActiveTransaction = "25P01",
    InFailedTransaction = "25P02",
    IdleInTransactionTimeout = "25P03",
    InvalidSqlStatementName = "26000",
    InvalidCursorName = "34000",
    InvalidAuthorization = "28000",
    InvalidPassword = "28P01",
    DependentObjectsExist = "2BP01",
    InvalidCatalogName = "3D000",
    InvalidSchemaName = "3F000",
    SerializationFailure = "40001",
    DeadlockDetected = "40P01",
    SyntaxError = "42601",
    InsufficientPrivilege = "42501",
    InvalidName = "42602",
    DuplicateColumn = "42701",
    DuplicateAlias = "42712",
    AmbiguousColumn = "42702",
    UndefinedColumn = "42703",
    UndefinedObject = "42704",
    DuplicateObject = "42710",
    DuplicateTable = "42P07",
    DuplicateSchema = "42P06",
    DuplicateDatabase = "42P04",
    ReservedName = "42939",
    DuplicatePreparedStatement = "42P05",
    DuplicateCursor = "42P03",
    AmbiguousFunction = "42725",
    WindowingError = "42P20",
    GroupingError = "42803",
    DatatypeMismatch = "42804",
    WrongObjectType = "42809",
    UndefinedFunction = "42883",
    CannotCoerce = "42846",
    UndefinedTable = "42P01",
    UndefinedParameter = "42P02",
    IndeterminateDatatype = "42P18",
    InvalidTableDefinition = "42P16",
    InvalidColumnReference = "42P10",
    DiskFull = "53100",
    OutOfMemory = "53200",
    TooManyConnections = "53300",
    ConfigurationLimitExceeded = "53400",
    ProgramLimitExceeded = "54000",
    TooManyColumns = "54011",
    StatementTooComplex = "54001",
    ObjectNotInPrerequisiteState = "55000",
    ObjectInUse = "55006",
    CantChangeRuntimeParam = "55P02",
    LockNotAvailable = "55P03",
    QueryCanceled = "57014",
    AdminShutdown = "57P01",
    CannotConnectNow = "57P03",
    IdleSessionTimeout = "57P05",
    IoError = "58030",
    UndefinedFile = "58P01",
    SnapshotTooOld = "72000",
    InternalError = "XX000",
    DataCorrupted = "XX001",
}

/// What went wrong, for the person who wrote the statement.
///
/// `message` is short, factual and lower case; `detail` gives the facts of this case; `hint` says what to do and works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error(Box<Body>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Body {
    state: SqlState,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    /// 1-based character offset into the statement's text.
    position: Option<usize>,
}

impl Error {
    pub fn new(state: SqlState, message: impl Into<String>) -> Error {
        Error(Box::new(Body { state, message: message.into(), detail: None, hint: None, position: None }))
    }

    /// A broken invariant of our own: `XX000`. The message says which.
    pub fn internal(message: impl Into<String>) -> Error {
        Error::new(SqlState::InternalError, message)
    }

    /// Something that Millstream does not have: `0A000`.
    pub fn unsupported(message: impl Into<String>) -> Error {
        Error::new(SqlState::FeatureNotSupported, message)
    }

    pub fn with_detail(mut self, detail: impl Into<String>) -> Error {
        self.0.detail = Some(detail.into());
        self
    }

    pub fn with_hint(mut self, hint: impl Into<String>) -> Error {
        self.0.hint = Some(hint.into());
        self
    }

    /// `position` is the 1-based character offset into the statement's text.
    pub fn with_position(mut self, position: usize) -> Error {
        self.0.position = Some(position);
        self
    }

    pub fn state(&self) -> SqlState {
        self.0.state
    }

    /// Whether the same may succeed later without anything being changed here: a disk is full (`53100`), a store or target is
    /// away (`58030`) or lets nobody in (`42501`).
    pub fn may_pass(&self) -> bool {
        matches!(self.0.state, SqlState::DiskFull | SqlState::IoError | SqlState::InsufficientPrivilege)
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    pub fn detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    pub fn position(&self) -> Option<usize> {
        self.0.position
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0.message, self.0.state.code())?;
        if let Some(detail) = &self.0.detail {
            write!(f, "; {detail}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<arrow::error::ArrowError> for Error {
    /// Arrow's compute kernels report what SQL calls data exceptions; everything else from Arrow is a bug of ours.
    fn from(e: arrow::error::ArrowError) -> Error {
        use arrow::error::ArrowError as A;
        match e {
            A::DivideByZero => Error::new(SqlState::DivisionByZero, "division by zero"),
            A::ArithmeticOverflow(m) => {
                Error::new(SqlState::NumericValueOutOfRange, "value out of range").with_detail(m)
            }
            A::CastError(m) => Error::new(SqlState::InvalidTextRepresentation, m),
            A::ParseError(m) => Error::new(SqlState::InvalidTextRepresentation, m),
            A::InvalidArgumentError(m) => Error::new(SqlState::DataException, m),
            A::ComputeError(m) => Error::new(SqlState::DataException, m),
            A::MemoryError(m) => Error::new(SqlState::OutOfMemory, m),
            A::IoError(m, _) => Error::new(SqlState::IoError, m),
            other => Error::internal(other.to_string()),
        }
    }
}
