package clientapi

import "net/http"

// Limits of request bodies in bytes.
const (
	// bodyDefault leaves room for an event of 64 KiB that is written with
	// white space and escapes.
	bodyDefault = 256 << 10
	bodySmall   = 16 << 10
	// bodyKeys is for requests about many devices at once.
	bodyKeys = 2 << 20
	// bodyBackup is for pieces of a key backup; clients send hundreds of
	// sessions of about a kilobyte at once.
	bodyBackup = 8 << 20
)

// route is one line of the table.
type route struct {
	method, path string
	auth         authKind
	limit        limitClass
	handle       handler
	// serve replaces handle where the handler writes the answer itself.
	serve func(*API, *request) error
	// body is the limit of the request body, bodyDefault if 0.
	body int64
	// locked lets users of locked accounts in.
	locked bool
	// active keeps suspended users out.
	active bool
	// emptyKey allows the state key of the path to be empty.
	emptyKey bool
}

func (rt *route) maxBody() int64 {
	if rt.body == 0 {
		return bodyDefault
	}
	return rt.body
}

const (
	get  = http.MethodGet
	put  = http.MethodPut
	post = http.MethodPost
	del  = http.MethodDelete

	c0 = "/_matrix/client"
	r0 = c0 + "/r0"
	v1 = c0 + "/v1"
	v3 = c0 + "/v3"
)

// routes is everything that the API answers.
func routes() []route {
	var all []route
	for _, section := range [][]route{
		discoveryRoutes, accountRoutes, profileRoutes, dataRoutes, pushRoutes,
		roomRoutes, membershipRoutes, eventRoutes, delayRoutes, relationRoutes, directoryRoutes,
		ephemeralRoutes, keyRoutes, backupRoutes, otherRoutes, retentionRoutes,
	} {
		all = append(all, section...)
	}
	return all
}

var discoveryRoutes = []route{
	{method: get, path: "/.well-known/matrix/client", handle: (*API).wellKnownClient},
	{method: get, path: "/.well-known/matrix/support", handle: (*API).wellKnownSupport},
	{method: get, path: c0 + "/versions", handle: (*API).versions},
	{method: get, path: v3 + "/capabilities", auth: authUser, limit: limRead, handle: (*API).capabilities},
}

var accountRoutes = []route{
	{method: get, path: v3 + "/login", limit: limGuess, handle: (*API).loginFlows},
	{method: post, path: v3 + "/login", limit: limLogin, body: bodySmall, handle: (*API).login},
	{method: post, path: v1 + "/login/get_token", auth: authUser, limit: limLogin, body: bodySmall, handle: (*API).loginToken},
	{method: post, path: v3 + "/refresh", limit: limGuess, body: bodySmall, handle: (*API).refresh},
	{method: post, path: v3 + "/logout", auth: authUser, locked: true, handle: (*API).logout},
	{method: post, path: v3 + "/logout/all", auth: authUser, locked: true, handle: (*API).logoutAll},

	{method: post, path: v3 + "/register", limit: limRegister, body: bodySmall, handle: (*API).register},
	{method: get, path: v3 + "/register/available", limit: limGuess, handle: (*API).registerAvailable},
	{method: get, path: v1 + "/register/m.login.registration_token/validity", limit: limRegister, handle: (*API).registrationTokenValidity},
	{method: post, path: v3 + "/register/email/requestToken", limit: limRegister, body: bodySmall, handle: (*API).noThirdPartyID},
	{method: post, path: v3 + "/register/msisdn/requestToken", limit: limRegister, body: bodySmall, handle: (*API).noThirdPartyID},
	{method: get, path: "/_synapse/admin/v1/register", limit: limRegister, handle: (*API).secretNonce},
	{method: post, path: "/_synapse/admin/v1/register", limit: limRegister, body: bodySmall, handle: (*API).secretRegister},

	{method: get, path: v3 + "/account/whoami", auth: authUser, limit: limRead, handle: (*API).whoami},
	{method: post, path: v3 + "/account/password", auth: authUser, limit: limLogin, body: bodySmall, handle: (*API).changePassword},
	{method: post, path: v3 + "/account/password/email/requestToken", limit: limRegister, body: bodySmall, handle: (*API).unknownThirdPartyID},
	{method: post, path: v3 + "/account/password/msisdn/requestToken", limit: limRegister, body: bodySmall, handle: (*API).unknownThirdPartyID},
	{method: post, path: v3 + "/account/deactivate", auth: authUser, limit: limLogin, body: bodySmall, handle: (*API).deactivate},
	{method: get, path: v3 + "/account/3pid", auth: authUser, limit: limRead, handle: (*API).thirdPartyIDs},
	{method: post, path: v3 + "/account/3pid", auth: authUser, limit: limWrite, body: bodySmall, handle: (*API).noThirdPartyID},
	{method: post, path: v3 + "/account/3pid/add", auth: authUser, limit: limWrite, body: bodySmall, handle: (*API).noThirdPartyID},
	{method: post, path: v3 + "/account/3pid/bind", auth: authUser, limit: limWrite, body: bodySmall, handle: (*API).noThirdPartyID},
	{method: post, path: v3 + "/account/3pid/delete", auth: authUser, limit: limWrite, body: bodySmall, handle: (*API).unbindThirdPartyID},
	{method: post, path: v3 + "/account/3pid/unbind", auth: authUser, limit: limWrite, body: bodySmall, handle: (*API).unbindThirdPartyID},
	{method: post, path: v3 + "/account/3pid/email/requestToken", limit: limRegister, body: bodySmall, handle: (*API).noThirdPartyID},
	{method: post, path: v3 + "/account/3pid/msisdn/requestToken", limit: limRegister, body: bodySmall, handle: (*API).noThirdPartyID},

	{method: get, path: v3 + "/devices", auth: authUser, limit: limRead, handle: (*API).devices},
	{method: get, path: v3 + "/devices/:deviceId", auth: authUser, limit: limRead, handle: (*API).device},
	{method: put, path: v3 + "/devices/:deviceId", auth: authUser, limit: limWrite, body: bodySmall, handle: (*API).renameDevice},
	{method: del, path: v3 + "/devices/:deviceId", auth: authUser, limit: limWrite, body: bodySmall, handle: (*API).deleteDevice},
	{method: post, path: v3 + "/delete_devices", auth: authUser, limit: limWrite, body: bodyDefault, handle: (*API).deleteDevices},
}

var profileRoutes = []route{
	{method: get, path: v3 + "/profile/:userId", auth: authOptional, limit: limHeavy, handle: (*API).profile},
	{method: get, path: v3 + "/profile/:userId/:keyName", auth: authOptional, limit: limHeavy, handle: (*API).profileField},
	{method: put, path: v3 + "/profile/:userId/:keyName", auth: authUser, active: true, limit: limWrite, handle: (*API).setProfileField},
	{method: del, path: v3 + "/profile/:userId/:keyName", auth: authUser, active: true, limit: limWrite, handle: (*API).deleteProfileField},
	{method: post, path: v3 + "/user_directory/search", auth: authUser, limit: limHeavy, body: bodySmall, handle: (*API).searchUsers},
	{method: get, path: v1 + "/mutual_rooms", auth: authUser, limit: limHeavy, handle: (*API).mutualRooms},
}

var dataRoutes = []route{
	{method: put, path: v3 + "/user/:userId/account_data/:type", auth: authUser, limit: limWrite, handle: (*API).setAccountData},
	{method: get, path: v3 + "/user/:userId/account_data/:type", auth: authUser, limit: limRead, handle: (*API).accountData},
	{method: put, path: v3 + "/user/:userId/rooms/:roomId/account_data/:type", auth: authUser, limit: limWrite, handle: (*API).setAccountData},
	{method: get, path: v3 + "/user/:userId/rooms/:roomId/account_data/:type", auth: authUser, limit: limRead, handle: (*API).accountData},
	{method: get, path: v3 + "/user/:userId/rooms/:roomId/tags", auth: authUser, limit: limRead, handle: (*API).tags},
	{method: put, path: v3 + "/user/:userId/rooms/:roomId/tags/:tag", auth: authUser, limit: limWrite, body: bodySmall, handle: (*API).setTag},
	{method: del, path: v3 + "/user/:userId/rooms/:roomId/tags/:tag", auth: authUser, limit: limWrite, handle: (*API).deleteTag},
	{method: post, path: v3 + "/user/:userId/filter", auth: authUser, limit: limWrite, body: bodyDefault, handle: (*API).saveFilter},
	{method: get, path: v3 + "/user/:userId/filter/:filterId", auth: authUser, limit: limRead, handle: (*API).filter},
	{method: post, path: v3 + "/user/:userId/openid/request_token", auth: authUser, limit: limWrite, handle: (*API).openIDToken},
}

var pushRoutes = []route{
	{method: get, path: v3 + "/notifications", auth: authUser, limit: limHeavy, handle: (*API).notifications},
	{method: get, path: v3 + "/pushers", auth: authUser, limit: limRead, handle: (*API).pushers},
	{method: post, path: v3 + "/pushers/set", auth: authUser, limit: limWrite, body: bodySmall, handle: (*API).setPusher},
	{method: get, path: v3 + "/pushrules", auth: authUser, limit: limRead, handle: (*API).pushRules},
	{method: get, path: v3 + "/pushrules/", auth: authUser, limit: limRead, handle: (*API).pushRules},
	{method: get, path: v3 + "/pushrules/global", auth: authUser, limit: limRead, handle: (*API).pushRulesGlobal},
	{method: get, path: v3 + "/pushrules/global/", auth: authUser, limit: limRead, handle: (*API).pushRulesGlobal},
	{method: get, path: v3 + "/pushrules/global/:kind", auth: authUser, limit: limRead, handle: (*API).pushRulesKind},
	{method: get, path: v3 + "/pushrules/global/:kind/", auth: authUser, limit: limRead, handle: (*API).pushRulesKind},
	{method: get, path: v3 + "/pushrules/global/:kind/:ruleId", auth: authUser, limit: limRead, handle: (*API).pushRule},
	{method: put, path: v3 + "/pushrules/global/:kind/:ruleId", auth: authUser, limit: limWrite, body: bodySmall, handle: (*API).setPushRule},
	{method: del, path: v3 + "/pushrules/global/:kind/:ruleId", auth: authUser, limit: limWrite, handle: (*API).deletePushRule},
	{method: get, path: v3 + "/pushrules/global/:kind/:ruleId/enabled", auth: authUser, limit: limRead, handle: (*API).pushRuleEnabled},
	{method: put, path: v3 + "/pushrules/global/:kind/:ruleId/enabled", auth: authUser, limit: limWrite, body: bodySmall, handle: (*API).setPushRuleEnabled},
	{method: get, path: v3 + "/pushrules/global/:kind/:ruleId/actions", auth: authUser, limit: limRead, handle: (*API).pushRuleActions},
	{method: put, path: v3 + "/pushrules/global/:kind/:ruleId/actions", auth: authUser, limit: limWrite, body: bodySmall, handle: (*API).setPushRuleActions},
}

var roomRoutes = []route{
	{method: post, path: v3 + "/createRoom", auth: authUser, active: true, limit: limCreate, handle: (*API).createRoom},
	{method: post, path: v3 + "/rooms/:roomId/upgrade", auth: authUser, active: true, limit: limCreate, body: bodySmall, handle: (*API).upgradeRoom},
	{method: get, path: v3 + "/joined_rooms", auth: authUser, limit: limRead, handle: (*API).joinedRooms},
	{method: get, path: v1 + "/room_summary/:roomIdOrAlias", auth: authOptional, limit: limHeavy, handle: (*API).roomSummary},
	{method: get, path: v1 + "/rooms/:roomId/hierarchy", auth: authUser, limit: limHeavy, handle: (*API).hierarchy},
}

var membershipRoutes = []route{
	{method: post, path: v3 + "/join/:roomIdOrAlias", auth: authUser, active: true, limit: limMember, body: bodySmall, handle: (*API).join},
	{method: post, path: v3 + "/rooms/:roomId/join", auth: authUser, active: true, limit: limMember, body: bodySmall, handle: (*API).join},
	{method: post, path: v3 + "/knock/:roomIdOrAlias", auth: authUser, active: true, limit: limMember, body: bodySmall, handle: (*API).knock},
	{method: post, path: v3 + "/rooms/:roomId/invite", auth: authUser, active: true, limit: limInvite, body: bodySmall, handle: (*API).invite},
	{method: post, path: v3 + "/rooms/:roomId/leave", auth: authUser, limit: limMember, body: bodySmall, handle: (*API).leave},
	{method: post, path: v3 + "/rooms/:roomId/forget", auth: authUser, limit: limMember, body: bodySmall, handle: (*API).forget},
	{method: post, path: v3 + "/rooms/:roomId/kick", auth: authUser, active: true, limit: limMember, body: bodySmall, handle: (*API).kick},
	{method: post, path: v3 + "/rooms/:roomId/ban", auth: authUser, active: true, limit: limMember, body: bodySmall, handle: (*API).ban},
	{method: post, path: v3 + "/rooms/:roomId/unban", auth: authUser, active: true, limit: limMember, body: bodySmall, handle: (*API).unban},
	{method: get, path: v3 + "/rooms/:roomId/members", auth: authUser, limit: limRead, handle: (*API).members},
	{method: get, path: v3 + "/rooms/:roomId/joined_members", auth: authUser, limit: limRead, handle: (*API).joinedMembers},
}

var eventRoutes = []route{
	{method: get, path: v3 + "/sync", auth: authUser, limit: limRead, serve: (*API).sync},
	{method: put, path: v3 + "/rooms/:roomId/send/:eventType/:txnId", auth: authUser, limit: limMessage, handle: (*API).sendEvent},
	{method: put, path: v3 + "/rooms/:roomId/redact/:eventId/:txnId", auth: authUser, limit: limMessage, handle: (*API).redact},
	{method: get, path: v3 + "/rooms/:roomId/state", auth: authUser, limit: limRead, handle: (*API).state},
	{method: get, path: v3 + "/rooms/:roomId/state/", auth: authUser, limit: limRead, handle: (*API).state},
	{method: get, path: v3 + "/rooms/:roomId/state/:eventType", auth: authUser, limit: limRead, handle: (*API).stateEvent},
	{method: get, path: v3 + "/rooms/:roomId/state/:eventType/", auth: authUser, limit: limRead, handle: (*API).stateEvent},
	{method: get, path: v3 + "/rooms/:roomId/state/:eventType/:stateKey", auth: authUser, limit: limRead, emptyKey: true, handle: (*API).stateEvent},
	{method: put, path: v3 + "/rooms/:roomId/state/:eventType", auth: authUser, limit: limMessage, handle: (*API).sendState},
	{method: put, path: v3 + "/rooms/:roomId/state/:eventType/", auth: authUser, limit: limMessage, handle: (*API).sendState},
	{method: put, path: v3 + "/rooms/:roomId/state/:eventType/:stateKey", auth: authUser, limit: limMessage, emptyKey: true, handle: (*API).sendState},
	{method: get, path: v3 + "/rooms/:roomId/event/:eventId", auth: authUser, limit: limRead, handle: (*API).event},
	{method: get, path: v3 + "/rooms/:roomId/context/:eventId", auth: authUser, limit: limHeavy, handle: (*API).eventContext},
	{method: get, path: v3 + "/rooms/:roomId/messages", auth: authUser, limit: limHeavy, handle: (*API).messages},
	{method: get, path: v1 + "/rooms/:roomId/timestamp_to_event", auth: authUser, limit: limHeavy, handle: (*API).timestampToEvent},
}

var relationRoutes = []route{
	{method: get, path: v1 + "/rooms/:roomId/relations/:eventId", auth: authUser, limit: limHeavy, handle: (*API).relations},
	{method: get, path: v1 + "/rooms/:roomId/relations/:eventId/:relType", auth: authUser, limit: limHeavy, handle: (*API).relations},
	{method: get, path: v1 + "/rooms/:roomId/relations/:eventId/:relType/:eventType", auth: authUser, limit: limHeavy, handle: (*API).relations},
	{method: get, path: v1 + "/rooms/:roomId/threads", auth: authUser, limit: limHeavy, handle: (*API).threads},
	{method: post, path: v3 + "/search", auth: authUser, limit: limHeavy, body: bodySmall, handle: (*API).search},
}

var directoryRoutes = []route{
	{method: get, path: v3 + "/directory/room/:roomAlias", limit: limHeavy, handle: (*API).alias},
	{method: put, path: v3 + "/directory/room/:roomAlias", auth: authUser, active: true, limit: limWrite, body: bodySmall, handle: (*API).setAlias},
	{method: del, path: v3 + "/directory/room/:roomAlias", auth: authUser, active: true, limit: limWrite, handle: (*API).deleteAlias},
	{method: get, path: v3 + "/rooms/:roomId/aliases", auth: authUser, limit: limRead, handle: (*API).aliases},
	{method: get, path: v3 + "/directory/list/room/:roomId", limit: limHeavy, handle: (*API).visibility},
	{method: put, path: v3 + "/directory/list/room/:roomId", auth: authUser, active: true, limit: limWrite, body: bodySmall, handle: (*API).setVisibility},
	{method: put, path: v3 + "/directory/list/appservice/:networkId/:roomId", auth: authUser, limit: limWrite, handle: (*API).onlyAppservices},
	{method: get, path: v3 + "/publicRooms", limit: limHeavy, handle: (*API).publicRooms},
	{method: post, path: v3 + "/publicRooms", auth: authUser, limit: limHeavy, body: bodySmall, handle: (*API).searchPublicRooms},
}

var ephemeralRoutes = []route{
	{method: put, path: v3 + "/rooms/:roomId/typing/:userId", auth: authUser, active: true, limit: limEphemeral, body: bodySmall, handle: (*API).typing},
	{method: post, path: v3 + "/rooms/:roomId/receipt/:receiptType/:eventId", auth: authUser, limit: limEphemeral, body: bodySmall, handle: (*API).receipt},
	{method: post, path: v3 + "/rooms/:roomId/read_markers", auth: authUser, limit: limEphemeral, body: bodySmall, handle: (*API).readMarkers},
	{method: get, path: v3 + "/presence/:userId/status", auth: authUser, limit: limRead, handle: (*API).presence},
	{method: put, path: v3 + "/presence/:userId/status", auth: authUser, limit: limEphemeral, body: bodySmall, handle: (*API).setPresence},
}

var keyRoutes = []route{
	{method: post, path: v3 + "/keys/upload", auth: authUser, limit: limKeys, handle: (*API).uploadKeys},
	{method: post, path: v3 + "/keys/query", auth: authUser, limit: limKeys, body: bodyKeys, handle: (*API).queryKeys},
	{method: post, path: v3 + "/keys/claim", auth: authUser, limit: limKeys, body: bodyKeys, handle: (*API).claimKeys},
	{method: get, path: v3 + "/keys/changes", auth: authUser, limit: limKeys, handle: (*API).keyChanges},
	{method: post, path: v3 + "/keys/device_signing/upload", auth: authUser, limit: limKeys, handle: (*API).uploadSigningKeys},
	{method: post, path: v3 + "/keys/signatures/upload", auth: authUser, limit: limKeys, body: bodyKeys, handle: (*API).uploadSignatures},
	{method: put, path: v3 + "/sendToDevice/:eventType/:txnId", auth: authUser, limit: limKeys, body: bodyKeys, handle: (*API).sendToDevice},
}

var backupRoutes = []route{
	{method: post, path: v3 + "/room_keys/version", auth: authUser, limit: limKeys, handle: (*API).createBackup},
	{method: get, path: v3 + "/room_keys/version", auth: authUser, limit: limKeys, handle: (*API).backup},
	{method: get, path: v3 + "/room_keys/version/:version", auth: authUser, limit: limKeys, handle: (*API).backup},
	{method: put, path: v3 + "/room_keys/version/:version", auth: authUser, limit: limKeys, handle: (*API).updateBackup},
	{method: del, path: v3 + "/room_keys/version/:version", auth: authUser, limit: limKeys, handle: (*API).deleteBackup},
	{method: put, path: v3 + "/room_keys/keys", auth: authUser, limit: limKeys, body: bodyBackup, handle: (*API).putAllSessions},
	{method: get, path: v3 + "/room_keys/keys", auth: authUser, limit: limKeys, handle: (*API).allSessions},
	{method: del, path: v3 + "/room_keys/keys", auth: authUser, limit: limKeys, handle: (*API).deleteSessions},
	{method: put, path: v3 + "/room_keys/keys/:roomId", auth: authUser, limit: limKeys, body: bodyBackup, handle: (*API).putRoomSessions},
	{method: get, path: v3 + "/room_keys/keys/:roomId", auth: authUser, limit: limKeys, handle: (*API).roomSessions},
	{method: del, path: v3 + "/room_keys/keys/:roomId", auth: authUser, limit: limKeys, handle: (*API).deleteSessions},
	{method: put, path: v3 + "/room_keys/keys/:roomId/:sessionId", auth: authUser, limit: limKeys, handle: (*API).putSession},
	{method: get, path: v3 + "/room_keys/keys/:roomId/:sessionId", auth: authUser, limit: limKeys, handle: (*API).session},
	{method: del, path: v3 + "/room_keys/keys/:roomId/:sessionId", auth: authUser, limit: limKeys, handle: (*API).deleteSessions},
}

var otherRoutes = []route{
	{method: post, path: v3 + "/rooms/:roomId/report", auth: authUser, limit: limReport, body: bodySmall, handle: (*API).reportRoom},
	{method: post, path: v3 + "/rooms/:roomId/report/:eventId", auth: authUser, limit: limReport, body: bodySmall, handle: (*API).reportEvent},
	{method: post, path: v3 + "/users/:userId/report", auth: authUser, limit: limReport, body: bodySmall, handle: (*API).reportUser},
	{method: get, path: v3 + "/voip/turnServer", auth: authUser, limit: limRead, handle: (*API).turnServer},
	{method: get, path: v3 + "/thirdparty/protocols", auth: authUser, limit: limRead, handle: (*API).thirdPartyProtocols},
	{method: get, path: v3 + "/thirdparty/protocol/:protocol", auth: authUser, limit: limRead, handle: (*API).noThirdParty},
	{method: get, path: v3 + "/thirdparty/location/:protocol", auth: authUser, limit: limRead, handle: (*API).noThirdParty},
	{method: get, path: v3 + "/thirdparty/user/:protocol", auth: authUser, limit: limRead, handle: (*API).noThirdParty},
	{method: get, path: v3 + "/thirdparty/location", auth: authUser, limit: limRead, handle: (*API).noThirdParty},
	{method: get, path: v3 + "/thirdparty/user", auth: authUser, limit: limRead, handle: (*API).noThirdParty},
	{method: post, path: v1 + "/appservice/:appserviceId/ping", auth: authUser, limit: limWrite, handle: (*API).onlyAppservices},
	{method: get, path: v1 + "/admin/lock/:userId", auth: authUser, limit: limRead, handle: (*API).locked},
	{method: put, path: v1 + "/admin/lock/:userId", auth: authUser, limit: limWrite, body: bodySmall, handle: (*API).setLocked},
	{method: get, path: v1 + "/admin/suspend/:userId", auth: authUser, limit: limRead, handle: (*API).suspended},
	{method: put, path: v1 + "/admin/suspend/:userId", auth: authUser, limit: limWrite, body: bodySmall, handle: (*API).setSuspended},
	{method: get, path: v3 + "/admin/whois/:userId", auth: authUser, limit: limRead, handle: (*API).whois},
}
