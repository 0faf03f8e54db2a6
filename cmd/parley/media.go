package main

import (
	"context"
	"flag"
	"fmt"

	"parley/admin"
	"parley/internal/mxid"
)

func mediaCommand() *command {
	return &command{
		name: "media", args: "quarantine|release|delete MXC… | --user NAME | --room ID", short: "hide or erase files",
		long: `
media quarantine MXC…         hides files: nobody gets them any more, here or on
                              other servers that ask this one; they are kept for
                              those who have to look into it
media quarantine --user NAME  all files that a user of this server has uploaded
media quarantine --room ID    all files that events of a room name; those of
                              encrypted messages can't be seen
media release …               takes them out of quarantine
media delete …                erases them for ever

MXC is an address like mxc://example.org/AbCd. Works while the server runs and
while it doesn't.`,
		run: runMedia,
	}
}

func runMedia(ctx context.Context, a *args) error {
	var path, name, room string
	rest, err := a.parse(func(f *flag.FlagSet) {
		configFlag(f, &path)
		f.StringVar(&name, "user", "", "all files of this user")
		f.StringVar(&room, "room", "", "all files in this room")
	})
	if err != nil {
		return err
	}
	if len(rest) == 0 {
		return a.usage("say what to do and to which files")
	}
	done, ok := map[string]string{admin.MediaQuarantine: "hidden", admin.MediaRelease: "released", admin.MediaDelete: "erased"}[rest[0]]
	if !ok {
		return a.usage("quarantine, release or delete, not %q", rest[0])
	}
	return withControl(ctx, path, func(c admin.Control) error {
		n, err := c.Media(ctx, admin.MediaOrder{Do: rest[0], URIs: rest[1:], User: mxid.UserID(name), Room: mxid.RoomID(room)})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.stdout, "%d %s\n", n, done)
		return err
	})
}
