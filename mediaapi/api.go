// Package mediaapi stores files: upload, download, thumbnails, and files of
// other servers fetched once. Each file is encrypted under a key of its own;
// nothing on disk shows its name, type or owner.
//
// spec: client-server API, "Content Repository"; server-server API, "Content
// Repository"
package mediaapi
