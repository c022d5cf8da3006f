-- A store of version 2, as it is dumped: that of version 1, migrated, with an event in its outbox.
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE audits (
    system_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    
    timestamp REAL NOT NULL,
    crc INTEGER NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (system_id, seq)
) WITHOUT ROWID
;
INSERT INTO "audits" VALUES('papyra',5,5.0,3669821072,'{"kind":"audit","system_id":"bank","payload":{"actors":1},"timestamp":5.0}');
CREATE TABLE blocks (
    system_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    block INTEGER NOT NULL,
    records INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    oldest REAL NOT NULL,
    newest REAL NOT NULL,
    PRIMARY KEY (system_id, kind, block)
) WITHOUT ROWID
;
CREATE TABLE dead_letters (
    system_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    target TEXT NOT NULL, message_type TEXT NOT NULL,
    timestamp REAL NOT NULL,
    crc INTEGER NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (system_id, seq)
) WITHOUT ROWID
;
INSERT INTO "dead_letters" VALUES('papyra',6,'bank/gone','str',6.0,3882171665,'{"kind":"dead_letter","system_id":"bank","target":"bank/gone","message_type":"str","payload":"hello","expects_reply":false,"timestamp":6.0}');
CREATE TABLE events (
    system_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    actor TEXT NOT NULL, type TEXT NOT NULL, revision INTEGER,
    timestamp REAL NOT NULL,
    crc INTEGER NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (system_id, seq)
) WITHOUT ROWID
;
INSERT INTO "events" VALUES('papyra',1,'bank/ann','Deposited',1,1.0,1120016983,'{"kind":"event","system_id":"bank","actor_address":"bank/ann","event_type":"Deposited","payload":{"amount":10},"timestamp":1.0,"revision":1}');
INSERT INTO "events" VALUES('papyra',2,'bank/ann','Deposited',2,2.0,3930178828,'{"kind":"event","system_id":"bank","actor_address":"bank/ann","event_type":"Deposited","payload":{"amount":20},"timestamp":2.0,"revision":2,"metadata":{"by":"zoë"}}');
INSERT INTO "events" VALUES('papyra',3,'bank/ann','Deposited',3,3.0,312328262,'{"kind":"event","system_id":"bank","actor_address":"bank/ann","event_type":"Deposited","payload":{"amount":30},"timestamp":3.0,"revision":3}');
INSERT INTO "events" VALUES('papyra',4,'bank/bob','Opened',NULL,4.0,1948735947,'{"kind":"event","system_id":"bank","actor_address":"bank/bob","event_type":"Opened","payload":{"text":"nul \u0000, 😀"},"timestamp":4.0}');
INSERT INTO "events" VALUES('shop',1,'shop/till','Rung',NULL,8.0,3716113782,'{"kind":"event","system_id":"shop","actor_address":"shop/till","event_type":"Rung","payload":[1180591620717411303424],"timestamp":8.0}');
CREATE TABLE papyra_outbox (
    id INTEGER PRIMARY KEY,
    system_id TEXT NOT NULL,
    record TEXT NOT NULL
);
INSERT INTO "papyra_outbox" VALUES(1,'papyra','{"kind":"event","system_id":"papyra","actor_address":"bank/zoe","event_type":"Deposited","payload":{"amount":5},"timestamp":7.0}');
CREATE TABLE papyra_outbox_refused (
    id INTEGER PRIMARY KEY,
    system_id TEXT NOT NULL,
    record TEXT NOT NULL,
    reason TEXT NOT NULL,
    refused_at REAL NOT NULL
);
CREATE TABLE papyra_schema (version INTEGER NOT NULL);
INSERT INTO "papyra_schema" VALUES(2);
CREATE TABLE snapshots (
    system_id TEXT NOT NULL,
    actor TEXT NOT NULL,
    revision INTEGER NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (system_id, actor, revision)
);
INSERT INTO "snapshots" VALUES('papyra','bank/ann',3,X'6331646538366633633435393234346237653939653966623064633639383663207B2274797065223A22536E617073686F74222C226163746F72223A2262616E6B2F616E6E222C227265766973696F6E223A332C2276657273696F6E223A312C2273746F72655F6964223A223163363331623835623163313464316538336564306432613239336634353363222C22736571223A332C22636865636B73756D223A223730333831343364326232306265303866646538636137363036303937656331222C227374617465223A7B2262616C616E6365223A36307D2C2274696D657374616D70223A372E302C227368617065223A22227D0A');
CREATE TABLE systems (
    system_id TEXT PRIMARY KEY NOT NULL,
    store_id TEXT NOT NULL,
    inode INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    last_seq INTEGER NOT NULL
) WITHOUT ROWID
;
INSERT INTO "systems" VALUES('papyra','1c631b85b1c14d1e83ed0d2a293f453c',5753684,1,6);
INSERT INTO "systems" VALUES('shop','8698ff2e104c42a68d47d0d25dd16544',5753684,1,1);
CREATE INDEX events_by_actor ON events (system_id, actor, seq);
CREATE INDEX histories ON events (system_id, actor, revision) WHERE revision IS NOT NULL;
CREATE INDEX dead_letters_by_target ON dead_letters (system_id, target, seq);
CREATE INDEX papyra_outbox_by_system ON papyra_outbox (system_id, id);
COMMIT;
