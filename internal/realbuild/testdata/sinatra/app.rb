require 'sinatra'

get '/' do
  File.write('tmp/visited', 'yes')
  "a front end in Ruby, #{settings.environment}\n"
end
