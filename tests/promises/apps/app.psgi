# PSGI, for Starman: an answer in two pieces is PSGI's streaming interface.
use strict;
use warnings;
use Time::HiRes 'sleep';

sub note {
    open my $log, '>>', $ENV{POSTED_LOG} or die $!;
    syswrite $log, "$_[0]\n";
}

sub {
    my $env = shift;
    $env->{'psgi.input'}->read(my $body, $env->{CONTENT_LENGTH});
    my ($name, $before, $between) = split ' ', $body;
    my $middle = int(length($name) / 2);
    note("begun $name");
    sleep $before / 1000;
    return sub {
        my $writer = shift->([200, ['Content-Type' => 'text/plain']]);
        $writer->write(substr $name, 0, $middle);
        sleep $between / 1000;
        note("done $name");
        $writer->write(substr($name, $middle) . "\n");
        $writer->close;
    };
};
