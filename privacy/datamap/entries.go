package datamap

// Who can read what is opened. All of it can be read by the program that runs,
// and so by whoever controls the machine while it runs.
const (
	byMembers = "members of the room, as its history setting has it, and their servers"
	byOwner   = "the user's own devices"
	byMates   = "people who share a room with the user, and their servers"
	byServer  = "nobody: the server works with it"
)

// Entries is the data map. Keep it in the order of the documentation: rooms,
// accounts, keys, files, other servers, the store itself.
func Entries() []Entry {
	return append(append(roomEntries(), accountEntries()...), serverEntries()...)
}

func roomEntries() []Entry {
	return []Entry{
		{What: "events of rooms: what redaction leaves, and their content", Families: []string{"ej"}, Personal: true, Sealed: KeyEvent,
			Lifetime: "content: `retention.default` or the room's own lifetime, the shorter; what is the room's state: until it is replaced; what redaction leaves: as long as the room is known here", Readers: byMembers, Holds: []Kind{IDs, Events, Profile, Aliases}},
		{What: "facts about events: numbers of room, sender and type, times, edges of the graph, timeline, relations, threads", Families: []string{"ei", "em", "ep", "ew", "tl", "tt", "tu", "re", "rw", "th", "tH", "ag", "xb"}, Personal: true, Sealed: KeyNone,
			Lifetime: "as their event", Readers: byServer},
		{What: "state and summary of rooms, who is in them", Families: []string{"rc", "sn", "mu", "mr", "mh"}, Personal: true, Sealed: KeyNone,
			Lifetime: "as long as the room is known here", Readers: byMembers},
		{What: "what an invite or knock told about a room", Families: []string{"mi"}, Personal: true, Sealed: KeyUser,
			Lifetime: "until answered or forgotten", Readers: byOwner, Holds: []Kind{IDs, Events, Profile, Aliases}},
		{What: "events of other servers that wait for what they refer to", Families: []string{"fs"}, Personal: true, Sealed: KeyRoom,
			Lifetime: "until they are taken in or given up", Readers: byServer, Holds: []Kind{IDs, Events, Profile, Aliases}},
		{What: "names of rooms, users, state keys, servers, beside the numbers that stand for them", Families: []string{"ir", "iR", "iu", "iU", "is", "iS", "ik", "iK"}, Personal: true, Sealed: KeySystem,
			Lifetime: "as long as something refers to them", Readers: byServer, Holds: []Kind{IDs}},
		{What: "aliases, the published rooms", Families: []string{"al", "aL", "pd", "pD"}, Personal: true, Sealed: KeySystem,
			Lifetime: "until deleted", Readers: "everybody who asks", Holds: []Kind{IDs, Aliases}},
		{What: "which events are sticky, until when", Families: []string{"sk"}, Personal: true, Sealed: KeyNone,
			Lifetime: "until they end, an hour at most", Readers: byServer},
		{What: "events to be sent later, and what became of them; their IDs, which are capabilities, sealed and as keyed hashes", Families: []string{"ds", "dq", "df", "dx"}, Personal: true, Sealed: KeyUser,
			Lifetime: "until sent or cancelled, then for a day, the newest 100", Readers: byOwner, Holds: []Kind{IDs, Events, Delays}},
		{What: "which request made which event", Families: []string{"tx"}, Personal: true, Sealed: KeyHash,
			Lifetime: "two days", Readers: byServer},
		{What: "receipts, unread counts", Families: []string{"rr", "rp", "nc"}, Personal: true, Sealed: KeyUser,
			Lifetime: "replaced by the next one, or an hour after what they point at has ended", Readers: byMembers, Holds: []Kind{IDs}},
	}
}

func accountEntries() []Entry {
	return []Entry{
		{What: "accounts: localpart, password hash (argon2id), creation day, locks; erasures under way", Families: []string{"us"}, Personal: true, Sealed: KeyUser,
			Lifetime: "until the account is ended", Readers: "the operator: name, creation day, locks", Holds: []Kind{IDs, Password}},
		{What: "devices: identifier, display name", Families: []string{"dv"}, Personal: true, Sealed: KeyUser,
			Lifetime: "until logout", Readers: "the user's own devices; names: also local users who share a room", Holds: []Kind{IDs, Device}},
		{What: "tokens of sessions, refreshing, OpenID, login and registration", Families: []string{"at", "rf", "op", "lt", "rt"}, Personal: true, Sealed: KeyHash,
			Lifetime: "until they expire or are revoked", Readers: byServer, Holds: []Kind{IDs}},
		{What: "profiles", Families: []string{"pf"}, Personal: true, Sealed: KeyUser,
			Lifetime: "until changed or the account is ended", Readers: byMates, Holds: []Kind{IDs, Profile}},
		{What: "account data, push rules, filters", Families: []string{"ad", "ga", "fi"}, Personal: true, Sealed: KeyUser,
			Lifetime: "until changed or the account is ended", Readers: byOwner, Holds: []Kind{IDs, Settings}},
		{What: "pushers: the address at which a push gateway reaches a phone", Families: []string{"pr"}, Personal: true, Sealed: KeyUser,
			Lifetime: "until removed or the device goes", Readers: "the user's own devices, and the gateway", Holds: []Kind{IDs, Push, Device}},
		{What: "reports of events, rooms and people to the operator", Families: []string{"ar"}, Personal: true, Sealed: KeyUser,
			Lifetime: "the newest 1,000; with the account at the latest", Readers: "the operator", Holds: []Kind{IDs, Reports, Events}},
		{What: "device keys, one-time keys, cross-signing keys and signatures, key backups", Families: []string{"dk", "ot", "oc", "of", "cs", "cg", "kv", "kb"}, Personal: true, Sealed: KeyMixed,
			Lifetime: "until replaced, claimed or the device goes", Readers: "public keys: " + byMates + "; backups: " + byOwner, Holds: []Kind{IDs, Crypto, Device}},
		{What: "who changed their devices, and lists to be fetched or told", Families: []string{"dl", "gk", "dr"}, Personal: true, Sealed: KeyNone,
			Lifetime: "replaced by the next change", Readers: byServer, Holds: []Kind{IDs}},
		{What: "to-device messages, and which were seen (keyed hashes)", Families: []string{"td", "xt", "xd"}, Personal: true, Sealed: KeyUser,
			Lifetime: "until the device has them, `retention.default` at most", Readers: "the device they are for", Holds: []Kind{IDs, Direct}},
		{What: "facts about files: name, type, size, day, plan; owners, quotas, use of copies of other servers' files (numbers)", Families: []string{"mm", "mb", "mx", "mq", "mc"}, Personal: true, Sealed: KeyFile,
			Lifetime: "as their file", Readers: byServer, Holds: []Kind{Files, IDs}},
		{What: "files that are being erased, and files that the operator has hidden (keyed hashes)", Families: []string{"mg", "mz"}, Personal: false, Sealed: KeyHash,
			Lifetime: "until they are erased; until the operator shows them again", Readers: byServer},
		{What: "files", Files: []string{"media/*/*"}, Personal: true, Sealed: KeyFile,
			Lifetime: "`retention.default`, the upload's own or the plan's, the shortest; copies a week after their last use, or until their place is needed", Readers: "whoever has an account and knows the file's address", Holds: []Kind{Files}},
	}
}

func serverEntries() []Entry {
	return []Entry{
		{What: "events and EDUs for other servers, where each server stands", Families: []string{"fo", "fd", "fe", "fr"}, Personal: true, Sealed: KeySystem,
			Lifetime: "until delivered", Readers: "the server they are for", Holds: []Kind{IDs, Direct, Crypto}},
		{What: "the last answer to each server", Families: []string{"ft"}, Personal: false, Sealed: KeySystem,
			Lifetime: "replaced by the next one", Readers: "the server that asked", Holds: []Kind{IDs}},
		{What: "other servers' verify keys", Families: []string{"fk"}, Personal: false, Sealed: KeyPublic,
			Lifetime: "until they end", Readers: "everybody who asks"},
		{What: "data keys of rooms that are owed destruction", Families: []string{"pk"}, Personal: false, Sealed: KeyNone,
			Lifetime: "until it is done, seconds", Readers: byServer},
		{What: "what ends when: numbers of rooms and users, keyed hashes of files, with a day; of a room's oldest message the second", Families: []string{"zz"}, Personal: true, Sealed: KeyNone,
			Lifetime: "until what they end has gone", Readers: byServer},
		{What: "erasures of accounts under way: how far the work of asking other servers is", Families: []string{"er"}, Personal: true, Sealed: KeySystem,
			Lifetime: "until done, 40 days at most", Readers: byServer},
		{What: "fingerprints of all data keys that were ever destroyed", Files: []string{"vault/erased"}, Personal: false, Sealed: KeyHash,
			Lifetime: "for ever, so that a restored backup brings nothing back", Readers: byServer},
		{What: "rooms that no local user is in any more, and when they are purged", Families: []string{"gr"}, Personal: false, Sealed: KeyNone,
			Lifetime: "a day", Readers: byServer},
		{What: "exports that people asked for", Families: []string{"ex"}, Personal: true, Sealed: KeyUser,
			Lifetime: "a day", Readers: byOwner, Holds: []Kind{IDs}},
		{What: "archives of exports, encrypted with OpenPGP to a key or passphrase that the server doesn't keep", Files: []string{"exports/*"}, Personal: true, Sealed: "OpenPGP",
			Lifetime: "a day", Readers: byOwner},
		{What: "the store's own numbering", Families: []string{"!h", "!c", "!i"}, Personal: false, Sealed: KeyNone,
			Lifetime: "for ever", Readers: byServer},
		{What: "the store: rows, with what deleted rows leave behind until their files are rewritten", Files: []string{"store/*"}, Personal: true, Sealed: "as its rows",
			Lifetime: "as its rows; unreadable once their key is destroyed", Readers: byServer},
		{What: "data keys", Files: []string{"vault/epoch", "vault/epoch.tmp", "vault/keys.*", "vault/root.key", "vault/root.key.*"}, Personal: false, Sealed: KeyRoot,
			Lifetime: "until what they seal is erased", Readers: byServer},
		{What: "the certificate that stands in until there is a real one", Files: []string{"self-signed.crt", "self-signed.key"}, Personal: false, Sealed: "nothing: readable by the server's user only",
			Lifetime: "until replaced", Readers: byServer},
		{What: "the operator's socket", Files: []string{"control.sock"}, Personal: false, Sealed: "nothing: it keeps nothing",
			Lifetime: "while the server runs", Readers: byServer},
		{What: "the ledger of disclosures to authorities: number, day, legal basis, hash of what was handed out; whose account it was, under that user's key", Families: []string{"dc"}, Personal: true, Sealed: KeySystem,
			Lifetime: "for ever: it is the proof that there were no others; whose account it was: as long as the account", Readers: "the operator", Holds: []Kind{IDs}},
	}
}
