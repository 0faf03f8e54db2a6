package obs

import "github.com/pion/logging"

// Silence is a logger for pion that says nothing: pion's messages name people's
// addresses.
type Silence struct{}

// NewLogger implements logging.LoggerFactory.
func (s Silence) NewLogger(string) logging.LeveledLogger { return s }

// Trace and the others are what a logger has.
func (Silence) Trace(string)          {}
func (Silence) Tracef(string, ...any) {}
func (Silence) Debug(string)          {}
func (Silence) Debugf(string, ...any) {}
func (Silence) Info(string)           {}
func (Silence) Infof(string, ...any)  {}
func (Silence) Warn(string)           {}
func (Silence) Warnf(string, ...any)  {}
func (Silence) Error(string)          {}
func (Silence) Errorf(string, ...any) {}
