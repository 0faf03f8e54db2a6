// Package config reads parley's one configuration file. Keys is the only list
// of what can be configured: defaults, units, documentation, the file that
// quickstart writes and docs/config.md all come from it.
package config

import (
	"net/netip"
	"time"

	"parley/internal/mxid"
)

// Config is a checked configuration.
type Config struct {
	ServerName mxid.ServerName
	DataDir    string

	ListenClient  string // plain HTTP, "" = off
	ListenHTTPS   string // clients and federation, "" = off
	ListenMetrics string // "" = off

	TLSCert, TLSKey string
	TrustedCAs      []string

	PublicURL        string // base URL that clients use
	FederationServer string // host[:port] for .well-known/matrix/server
	SupportContact   string

	StorageDSN   string // of PostgreSQL, "" = goleveldb in DataDir
	StorageCache int64  // bytes
	RootKeyFile  string

	RegistrationToken  bool
	RegistrationOpen   bool
	RegistrationSecret string

	PasswordMinLength   int
	PasswordMemory      int64 // bytes
	AccessTokenLifetime time.Duration

	DefaultRoomVersion string

	MediaMaxUpload   int64 // bytes
	MediaUserQuota   int64 // bytes, 0 = none
	MediaRemoteCache int64 // bytes
	MediaLegacy      bool
	MediaS3          string // s3:// URL, "" = the folder media in DataDir

	RetentionDefault time.Duration // 0 = forever
	RetentionPlans   []Plan

	Federation           bool
	FederationAllow      []netip.Prefix
	FederationNotaries   []mxid.ServerName
	FederatedDeviceNames bool
	PublicProfiles       bool

	CallsUDP       netip.AddrPort // for media; invalid: no calls
	CallsAddresses []netip.Addr   // told to clients; none: those of the machine
	CallsCascade   bool           // join calls with other servers' over links
	CallsTURN      string         // host:port of listen.https for TURN, "" = found out, "off"

	RateLimits     bool
	TrustedProxies []netip.Prefix

	LogLevel string
}

// Plan is a class of accounts: how long what they upload is kept, and how much
// they may store.
type Plan struct {
	Name     string
	Lifetime time.Duration // 0 = no limit of the plan's own
	Quota    int64         // bytes, 0 = as media.user_quota says
}

// Key describes one configuration key.
type Key struct {
	Name    string // section.key, or key for the top level
	Default string // as written in the file
	Unit    string // "" if the value says it all
	Doc     string // one line
	set     func(c *Config, v value) error
}

// Keys is every key there is, in the order of the written file.
func Keys() []Key {
	return []Key{
		{"server_name", `""`, "name", "The name in user IDs (@user:name). Choose it once: it can't be changed later.", setServerName},
		{"data_dir", `"data"`, "folder", "Where everything is kept. Relative to this file.", text(func(c *Config) *string { return &c.DataDir })},
		{"listen.client", `"127.0.0.1:8008"`, "address", "Plain HTTP for clients behind a reverse proxy. Empty: off.", text(func(c *Config) *string { return &c.ListenClient })},
		{"listen.https", `":8448"`, "address", "HTTPS for clients and other servers. Empty: off.", text(func(c *Config) *string { return &c.ListenHTTPS })},
		{"listen.metrics", `"127.0.0.1:9100"`, "address", "Prometheus metrics and health. Keep it private. Empty: off.", text(func(c *Config) *string { return &c.ListenMetrics })},
		{"tls.certificate", `""`, "file", "PEM certificate chain for listen.https. Empty: a self-signed one is made.", text(func(c *Config) *string { return &c.TLSCert })},
		{"tls.key", `""`, "file", "PEM key of the certificate.", text(func(c *Config) *string { return &c.TLSKey })},
		{"tls.trusted_authorities", `[]`, "files", "PEM certificates of authorities to trust for federation besides the system's.", texts(func(c *Config) *[]string { return &c.TrustedCAs })},
		{"wellknown.client_url", `""`, "URL", "Base URL that clients use. Empty: https://server_name.", text(func(c *Config) *string { return &c.PublicURL })},
		{"wellknown.server", `""`, "host[:port]", "Where other servers connect. Empty: server_name on port 443.", text(func(c *Config) *string { return &c.FederationServer })},
		{"wellknown.support", `""`, "e-mail", "Address in /.well-known/matrix/support. Empty: not served.", text(func(c *Config) *string { return &c.SupportContact })},
		{"storage.dsn", `""`, "DSN", "PostgreSQL connection string. Empty: an embedded store (goleveldb) in data_dir.", text(func(c *Config) *string { return &c.StorageDSN })},
		{"storage.cache", `"64MB"`, "bytes", "Memory for the block cache of the store.", size(func(c *Config) *int64 { return &c.StorageCache })},
		{"storage.root_key_file", `""`, "file", "Key that wraps all data keys. Empty: data_dir/vault/root.key. Keep a copy elsewhere.", text(func(c *Config) *string { return &c.RootKeyFile })},
		{"registration.with_token", `true`, "", "Accounts can be made with a registration token.", boolean(func(c *Config) *bool { return &c.RegistrationToken })},
		{"registration.open", `false`, "", "Anybody can make an account. An invitation to spammers.", boolean(func(c *Config) *bool { return &c.RegistrationOpen })},
		{"registration.shared_secret", `""`, "secret", "Lets programs that know it make accounts. Empty: off.", text(func(c *Config) *string { return &c.RegistrationSecret })},
		{"password.min_length", `8`, "characters", "Shortest password accepted.", number(func(c *Config) *int { return &c.PasswordMinLength }, 1, 128)},
		{"password.memory", `"19MB"`, "bytes", "Memory that one password check takes (argon2id).", size(func(c *Config) *int64 { return &c.PasswordMemory })},
		{"session.access_token_lifetime", `"1h"`, "duration", "How long an access token works for clients that can refresh it.", duration(func(c *Config) *time.Duration { return &c.AccessTokenLifetime })},
		{"rooms.default_version", `"12"`, "", "Version of new rooms.", oneOf(func(c *Config) *string { return &c.DefaultRoomVersion }, "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12")},
		{"media.max_upload", `"100MB"`, "bytes", "Largest file that can be uploaded.", size(func(c *Config) *int64 { return &c.MediaMaxUpload })},
		{"media.user_quota", `"0"`, "bytes", "What one account may store. 0: no limit.", size(func(c *Config) *int64 { return &c.MediaUserQuota })},
		{"media.remote_cache", `"10GB"`, "bytes", "Space for copies of files of other servers.", size(func(c *Config) *int64 { return &c.MediaRemoteCache })},
		{"media.unauthenticated", `false`, "", "Serve files on the old endpoints that ask for no token.", boolean(func(c *Config) *bool { return &c.MediaLegacy })},
		{"media.s3", `""`, "URL", "S3 service for files: s3://KEY:SECRET@host/bucket?region=…. Empty: the folder data_dir/media.", s3URL(func(c *Config) *string { return &c.MediaS3 })},
		{"retention.default", `"90d"`, "lifetime", "How long messages, files and messages that wait for a device are kept: 30d, 12w, 1y, or forever. Rooms, plans and uploads can only shorten it.", lifetime(func(c *Config) *time.Duration { return &c.RetentionDefault })},
		{"retention.plans", `[]`, "", "Plans that accounts can be given, each with a lifetime of uploads and a quota: [\"free=30d,1GB\", \"pro=1y\"].", plans(func(c *Config) *[]Plan { return &c.RetentionPlans })},
		{"federation.enabled", `true`, "", "Talk to other servers.", boolean(func(c *Config) *bool { return &c.Federation })},
		{"federation.allow_networks", `[]`, "CIDR", "Private networks that outgoing connections may reach. Needed for tests and closed networks only.", prefixes(func(c *Config) *[]netip.Prefix { return &c.FederationAllow })},
		{"federation.notaries", `[]`, "names", "Servers to ask for the keys of servers that don't answer.", names(func(c *Config) *[]mxid.ServerName { return &c.FederationNotaries })},
		{"privacy.share_device_names", `false`, "", "Tell other servers the names of users' devices.", boolean(func(c *Config) *bool { return &c.FederatedDeviceNames })},
		{"privacy.public_profiles", `false`, "", "Show profiles to everybody, not only to people who share a room.", boolean(func(c *Config) *bool { return &c.PublicProfiles })},
		{"calls.udp", `":7881"`, "address", "UDP port for the media of calls. Open it in the firewall. \"off\": no calls.", packets(func(c *Config) *netip.AddrPort { return &c.CallsUDP })},
		{"calls.addresses", `[]`, "IP addresses", "Public addresses of calls.udp that clients are told. Empty: those of this machine. Needed behind NAT.", addresses(func(c *Config) *[]netip.Addr { return &c.CallsAddresses })},
		{"calls.turn", `""`, "host:port", "Where clients reach listen.https for TURN (relays for those whose network lets no UDP through). Empty: found out. \"off\": no TURN.", hostPort(func(c *Config) *string { return &c.CallsTURN }, "off")},
		{"calls.cascade", `true`, "", "Join calls with those of other servers that do the same: media goes from server to server, once, and clients connect to this one only. All calls are then on one core; false spreads them over all.", boolean(func(c *Config) *bool { return &c.CallsCascade })},
		{"limits.rate_limits", `true`, "", "Slow down clients that send too much.", boolean(func(c *Config) *bool { return &c.RateLimits })},
		{"limits.trusted_proxies", `["127.0.0.0/8", "::1/128"]`, "CIDR", "Reverse proxies whose X-Forwarded-For is believed, for rate limits only.", prefixes(func(c *Config) *[]netip.Prefix { return &c.TrustedProxies })},
		{"log.level", `"warn"`, "", "debug, info, warn or error. No level shows who does what.", oneOf(func(c *Config) *string { return &c.LogLevel }, "debug", "info", "warn", "error")},
	}
}
