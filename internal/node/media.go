package node

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"path/filepath"

	"parley/admin"
	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/mediaapi"
	"parley/privacy/timers"
	"parley/room"
	"parley/storage"
	"parley/storage/blob"
	"parley/storage/intern"
)

// openMedia makes the content repository on a folder or an S3 service.
func (n *Node) openMedia() error {
	blobs, err := n.openBlobs()
	if err != nil {
		return err
	}
	n.blobs = blobs
	n.media, err = mediaapi.New(mediaapi.Config{ServerName: n.cfg.ServerName, KV: n.kv, Commit: n.commit, Vault: n.vault, Blobs: blobs,
		Remote: n.client, Clock: n.clk, Log: n.log, Book: n.timers.Book(), Plans: mediaPlans{n}, InUse: n.pictureInUse, MaxUpload: n.cfg.MediaMaxUpload,
		UserQuota: n.cfg.MediaUserQuota, RemoteCache: n.cfg.MediaRemoteCache, Legacy: n.cfg.MediaLegacy})
	if err != nil {
		return err
	}
	n.onClose(func() error { n.media.Close(); return nil })
	n.timers.Register(timers.Media, n.media.Expire)
	n.timers.Register(timers.RemoteMedia, n.media.Expire)
	n.timers.Register(timers.PlanChanges, n.replanMedia)
	return nil
}

// openBlobs opens where files are.
func (n *Node) openBlobs() (*blob.Store, error) {
	if n.cfg.MediaS3 == "" {
		return blob.Open(filepath.Join(n.cfg.DataDir, "media"), blob.Options{})
	}
	at, err := blob.ParseS3(n.cfg.MediaS3)
	if err != nil {
		return nil, err
	}
	return blob.OpenS3(context.Background(), at, blob.S3Options{Clock: n.clk})
}

// Media is the content repository.
func (n *Node) Media() *mediaapi.Service { return n.media }

// Blobs is where files are.
func (n *Node) Blobs() *blob.Store { return n.blobs }

// mediaPlans tells the repository the plans of users.
type mediaPlans struct{ n *Node }

func (p mediaPlans) MediaPlan(ctx context.Context, uid uint32) (name string, quota int64, err error) {
	name, err = p.n.users.Plan(ctx, intern.UID(uid))
	for _, plan := range *p.n.plans.Load() {
		if plan.Name == name {
			quota = plan.Quota
		}
	}
	return name, quota, err
}

// pictureInUse reports whether a file is its owner's picture, or that of a room
// that the owner is in.
func (n *Node) pictureInUse(ctx context.Context, owner uint32, uri string) (bool, error) {
	user, err := n.intern.UserID(ctx, intern.UID(owner))
	if err != nil {
		return false, err
	}
	profile, err := n.users.Profile(ctx, user)
	if errors.Is(err, storage.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var picture string
	if json.Unmarshal(profile["avatar_url"], &picture) == nil && picture == uri {
		return true, nil
	}
	return n.rooms.IsPicture(ctx, user, uri)
}

// replanMedia puts the files of users with a new plan under it.
func (n *Node) replanMedia(ctx context.Context, due []timers.Timer) error {
	for _, t := range due {
		if len(t.Ref) != 4 {
			continue
		}
		if err := n.media.Replan(ctx, binary.BigEndian.Uint32(t.Ref)); err != nil {
			return err
		}
	}
	return n.commit.Do(ctx, func(tx *storage.Tx) error {
		for _, t := range due {
			t.Clear(tx)
		}
		return nil
	})
}

// OrderMedia implements admin.Files.
func (n *Node) OrderMedia(ctx context.Context, o admin.MediaOrder) (int, error) {
	uris := o.URIs
	switch {
	case o.User != "":
		uid, known, err := n.intern.LookupUser(ctx, o.User)
		if err != nil || !known {
			return 0, errors.Join(err, httpx.NotFound("There is no such user"))
		}
		if o.Do != admin.MediaDelete {
			return n.media.QuarantineUser(ctx, uint32(uid), o.Do == admin.MediaQuarantine)
		}
		uris, err = n.userMedia(ctx, uid)
		if err != nil {
			return 0, err
		}
	case o.Room != "":
		var err error
		if uris, err = n.roomMedia(ctx, o.Room); err != nil {
			return 0, err
		}
	}
	if o.Do != admin.MediaDelete {
		return n.media.Quarantine(ctx, uris, o.Do == admin.MediaQuarantine)
	}
	return n.deleteMedia(ctx, uris)
}

func (n *Node) userMedia(ctx context.Context, uid intern.UID) (uris []string, err error) {
	err = n.media.Files(ctx, uint32(uid), func(f mediaapi.File) error {
		uris = append(uris, f.URI)
		return nil
	})
	return uris, err
}

func (n *Node) deleteMedia(ctx context.Context, uris []string) (deleted int, err error) {
	for _, uri := range uris {
		server, id, err := mediaapi.ParseURI(uri)
		if err != nil {
			return deleted, err
		}
		switch err := n.media.Delete(ctx, server, id); {
		case err == nil:
			deleted++
		case !errors.Is(err, storage.ErrNotFound):
			return deleted, err
		}
	}
	return deleted, nil
}

// roomMedia lists the files that events of a room name. Pictures of people
// aren't the room's.
func (n *Node) roomMedia(ctx context.Context, id mxid.RoomID) (uris []string, err error) {
	const page = 200
	rid, _, known, err := n.rooms.Lookup(ctx, id)
	if err != nil || !known {
		return nil, errors.Join(err, httpx.NotFound("This server doesn't know the room"))
	}
	seen := map[string]bool{}
	for to, more := ^room.Ord(0)-1, true; more; {
		var evs []*room.Event
		if evs, more, err = n.rooms.Timeline(ctx, rid, 0, to, page); err != nil {
			return nil, err
		}
		if len(evs) == 0 {
			break
		}
		for _, ev := range evs {
			if ev.Type == "m.room.member" {
				continue
			}
			for _, uri := range mediaapi.URIsIn(ev.JSON) {
				if !seen[uri] {
					seen[uri] = true
					uris = append(uris, uri)
				}
			}
		}
		to = evs[0].Ord - 1
	}
	return uris, nil
}
